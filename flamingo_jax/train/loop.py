"""The training loop: one run, or the rest of one, from top to bottom."""

import signal
from collections.abc import Generator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental.multihost_utils import broadcast_one_to_all

from flamingo_jax.data.bad_records import BadRecordLog
from flamingo_jax.data.pipeline import Batches, StepSource, batches
from flamingo_jax.errors import Stopped, UserError
from flamingo_jax.parallel import multihost
from flamingo_jax.parallel.sharding import host_part, to_device
from flamingo_jax.schema import dump
from flamingo_jax.train.checkpoint import Checkpointer, check_frozen, check_same_run
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.feed import DevicePrefetcher
from flamingo_jax.train.few_shot import check_few_shot, delete_results_after, few_shot
from flamingo_jax.train.fingerprint import fingerprints
from flamingo_jax.train.kernels import attention_kernels
from flamingo_jax.train.metrics import floats, is_recorded
from flamingo_jax.train.profile import Profile
from flamingo_jax.train.progress import Progress
from flamingo_jax.train.setup import Run, set_up
from flamingo_jax.train.signals import StopOnSignal
from flamingo_jax.train.start_up import StartupTimer
from flamingo_jax.train.step import TrainState
from flamingo_jax.train.vision_cache import VisionCache, check_vision_cache
from flamingo_jax.train.watchdog import Watchdog

FAILED = 64  # a vote beside the signals' numbers


def train(
    config: TrainConfig,
    workdir: Path,
    devices: list[jax.Device] | None = None,
    start_up: StartupTimer | None = None,
) -> None:
    """One run, or the rest of one, from top to bottom, on these devices (default: all).

    `start_up` has what came before; without one, the clock begins here.

    Raises:
      UserError: the config does not fit itself, the devices or the working directory; the loss
        stayed NaN or infinite; data or a checkpoint failed, here or in another process.
    """
    start_up = start_up or StartupTimer()
    stop = StopOnSignal()
    devices = jax.devices() if devices is None else devices
    start_up.done("devices")
    run = set_up(config, devices)
    check_vision_cache(run)
    check_few_shot(run)
    check_same_run(workdir, dump(config))
    checkpointer = Checkpointer(workdir, keep=config.keep_checkpoints, keep_every=config.keep_every)
    frozen = run.make_frozen()
    facts = {"version": 2, "config": dump(config), "frozen": fingerprints(frozen)}
    state, restored = _first_state(run, checkpointer, facts["frozen"])
    start = restored.get("step", 0)
    delete_results_after(workdir, start)
    trained_count, frozen_count = (sum(x.size for x in p.values()) for p in (state.params, frozen))
    multihost.print0(
        f"{trained_count:,} trained and {frozen_count:,} frozen parameters "
        f"on {run.mesh.size} {run.mesh.devices.flat[0].platform} device(s)"
    )
    if frozen_count and not config.init_from:
        multihost.print0(
            "warning: the frozen ones are random; config.init_from takes pretrained ones"
        )
    multihost.print0(attention_kernels(config, run.mesh))

    start_up.done("weights")

    cache = VisionCache(run, frozen, facts["frozen"]) if config.data.vision_cache else None
    counters = cache.counters if cache else {}
    progress = Progress(run, workdir, start, start_up, counters)
    profile = Profile(
        workdir / "profile", config.profile_steps if multihost.is_lead_process() else ()
    )
    reader = _read(run, workdir, start)
    feed = DevicePrefetcher(reader, config.num_steps - start, place=partial(_place, run, cache))
    start_up.done("first batch")

    def vote() -> int:
        return stop.received or FAILED * bool(feed.failure or checkpointer.failure)

    agreement = multihost.StopVote(run.mesh, vote)

    def stopping() -> bool:
        return bool(stop.received)

    def evaluate(step: int, metrics: dict[str, Any]) -> None:
        """Note a step with its scores; not yet where a signal ended the evaluation."""
        try:
            with progress.paused_for("evaluate"), watchdog.paused():
                scores = few_shot(run, {**state.params, **frozen}, workdir, step, stopping)
        except Stopped:
            multihost.print0(f"the evaluation of step {step} was left for the next start")
            agreement.propose()  # so that this run ends after this very step
            return
        progress.note(step, {**metrics, **scores})

    step, kept = start, facts
    with (
        Watchdog(config.watchdog_seconds, f"process {jax.process_index()}") as watchdog,
        closing(cache) if cache else nullcontext(),
        closing(checkpointer),
        closing(reader),
        closing(progress),
        closing(profile),
    ):
        # The first one looks for all: on a shared disk, others may not see its lines yet.
        if "metrics" in restored and not broadcast_one_to_all(is_recorded(workdir, start)):
            evaluate(start, restored["metrics"])
            progress.finish_last()  # its speed was the last start's to tell
            start_up.done("evaluation")
        agreement.propose()
        while step < config.num_steps and not (reason := agreement.decision())[0]:
            step += 1
            batch, counts = feed.take()
            agreement.propose()
            profile.begin(step)
            with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
                state, metrics = run.train_step(state, frozen, batch)
            profile.end(step, metrics)
            # The devices have this step to do, and mostly the one before: time for the next batch.
            with progress.paused_for("data", beside=metrics):
                feed.advance()
            progress.sent(step, batch, metrics)
            progress.finish_last()
            if step > start + 1:  # every process has compiled
                watchdog.beat(f"step {step}")
            evaluates = config.evaluate_every and step % config.evaluate_every == 0
            values: dict[str, Any] = {**metrics, **counts}
            kept = facts
            if evaluates:  # a run that goes on from here may have to evaluate first
                kept = {**facts, "metrics": floats(values)}
            else:
                progress.note(step, values)
            if step % config.checkpoint_every == 0 or step == config.num_steps:
                progress.finish_last()  # a run that goes on from here does not write this line
                with progress.paused_for("save"):
                    checkpointer.save(step, state, kept)
            if evaluates:
                evaluate(step, values)
        progress.finish_last()
        if step < config.num_steps:
            _stop(reason, feed.failure or checkpointer.failure)
            checkpointer.save(step, state, kept)
            multihost.print0(
                f"stopped by {signal.Signals(reason[0]).name} after step {step}; "
                "run the same command to go on"
            )


def _first_state(
    run: Run, checkpointer: Checkpointer, frozen: dict[str, str]
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, and the facts saved with it; at the beginning there are none."""
    restored = checkpointer.restore(run.state_like())
    if restored is None:
        return run.make_trained(), {}
    state, facts = restored
    check_frozen(facts, frozen)
    checkpointer.quarantine_after(facts["step"])
    multihost.print0(f"resumed from step {facts['step']}")
    return state, facts


def _read(run: Run, workdir: Path, start: int) -> Generator[tuple[Batches, dict[str, int]]]:
    """This process's part of every batch from `start` on, with what is counted on the way."""
    config = run.config
    source = StepSource(run.streams, config.seed, config.num_steps, *host_part(run.mesh))
    bad_records = BadRecordLog(
        workdir / f"bad_records-{jax.process_index()}.jsonl",
        start=start,
        max_fraction=config.data.max_bad_fraction,
    )
    reader = batches(
        source,
        start,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        log=bad_records,
    )
    with closing(reader):
        for batch in reader:
            yield batch, {"bad_records": bad_records.total} if source.reads_files else {}


def _place(
    run: Run, cache: VisionCache | None, element: tuple[Batches, dict[str, int]]
) -> tuple[Any, dict[str, int]]:
    """An element of `_read` whose batch is on its way to the devices."""
    batch, counts = element
    return cache.place(batch) if cache else to_device(batch, run.mesh), counts


def _stop(reason: tuple[int, int], failure: Exception | None) -> None:
    """Raise what the processes agreed to stop for, if it is no signal."""
    vote, process = reason
    if vote == FAILED:
        raise failure or UserError(f"process {process} failed; see what it printed")
