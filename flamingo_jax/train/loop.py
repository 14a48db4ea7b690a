"""The training loop: one run, or the rest of one, from top to bottom."""

import signal
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh

from flamingo_jax.data.pipeline import make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.models.params import Params
from flamingo_jax.parallel import multihost
from flamingo_jax.schema import dump
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train.checkpoint import Checkpointer, check_frozen, check_same_run
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.feed import DevicePrefetcher, open_batches
from flamingo_jax.train.few_shot import FewShot
from flamingo_jax.train.fingerprint import fingerprints
from flamingo_jax.train.initial_weights import InitialWeights
from flamingo_jax.train.kernels import attention_kernels
from flamingo_jax.train.metrics import floats, is_recorded
from flamingo_jax.train.profile import Profile
from flamingo_jax.train.progress import Progress, due
from flamingo_jax.train.setup import Setup, set_up
from flamingo_jax.train.signals import StopOnSignal
from flamingo_jax.train.start_up import StartupTimer
from flamingo_jax.train.step import TrainState
from flamingo_jax.train.vision_cache import VisionCache, check_vision_cache
from flamingo_jax.train.watchdog import Watchdog

FAILED = 64  # a vote beside the signals' numbers


def run(
    config: TrainConfig,
    workdir: Path,
    devices: list[jax.Device] | None = None,
    start_up: StartupTimer | None = None,
) -> None:
    """Trains on these devices (default: all), or goes on with the run that `workdir` holds.

    UserError: config, devices or `workdir` do not fit; the loss stays NaN; data or a save fails.
    """
    start_up, signals = start_up or StartupTimer(), StopOnSignal()
    devices = jax.devices() if devices is None else devices
    start_up.done("devices")

    # Set up: every check comes before anything is computed or written.
    setup = set_up(config, devices)
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    streams = make_streams(config.streams, tokens, config.model.encoder.image_size)
    initial = InitialWeights(setup, config.seed, config.init_from)
    check_vision_cache(config, setup.trained)
    few_shot = FewShot(config, setup, tokens, workdir, signals)
    check_same_run(workdir, dump(config))

    # Restore the newest sound checkpoint, or begin with the initial weights.
    checkpointer = Checkpointer(workdir, keep=config.keep_checkpoints, keep_every=config.keep_every)
    frozen = initial.frozen()
    hashes = fingerprints(frozen)
    facts = {"version": 2, "config": dump(config), "frozen": hashes}
    state, restored = _restore(checkpointer, setup, hashes) or (initial.state(), {"step": 0})
    step = start = restored["step"]
    _announce(config, setup.mesh, state, frozen)
    start_up.done("weights")
    cache = VisionCache(config, setup, frozen, hashes) if config.data.vision_cache else None
    with (
        Watchdog(config.watchdog_seconds, f"process {jax.process_index()}") as watchdog,
        closing(checkpointer),
        closing(Progress(config, setup.mesh, workdir, start, start_up, cache)) as log,
        open_batches(config, streams, setup.mesh, workdir, start, cache) as batches,
        closing(Profile(workdir / "profile", config.profile_steps)) as profile,
    ):
        start_up.done("first batch")
        vote = multihost.StopVote(setup.mesh, partial(_vote, signals, batches, checkpointer))
        evaluate = partial(_evaluate, few_shot, frozen, log, watchdog, vote)

        # Evaluate what an interrupted run owes. Process 0 looks: others may not see its lines yet.
        if "metrics" in restored and not broadcast_one_to_all(is_recorded(workdir, start)):
            evaluate(step, state, restored["metrics"])
            log.flush()  # its speed was the last start's to tell
            start_up.done("evaluation")
        owed: dict[str, Any] = {}
        while step < config.num_steps and not (reason := vote.result())[0]:
            # Dispatch a step: the devices mostly have the one before to do.
            step += 1
            batch, counts = next(batches)
            vote.cast()
            profile.step(step, state)
            with jax.set_mesh(setup.mesh), jax.transfer_guard("disallow"):
                state, metrics = setup.train_step(state, frozen, batch)
            # Meanwhile, prefetch the next batch, and log the step before.
            with log.paused("data", pending=metrics):
                batches.prefetch()
            log.step_dispatched(step, batch, metrics)
            log.flush()
            watchdog.beat(f"step {step}")
            owed = {"metrics": floats(metrics | counts)} if due(step, config.evaluate_every) else {}
            if not owed:  # else the step's line waits for its scores
                log.defer(step, metrics | counts)
            # Save, after the lines of all steps but one whose evaluation is owed. Evaluate.
            if due(step, config.checkpoint_every) or step == config.num_steps:
                log.flush()
                with log.paused("save"):
                    checkpointer.save(step, state, {**facts, **owed})
            if owed:
                evaluate(step, state, owed["metrics"])
        # Finish, or stop where the processes agreed to.
        log.flush()
        if step < config.num_steps:
            name = _signal_name(reason, batches.failure or checkpointer.failure)
            checkpointer.save(step, state, {**facts, **owed})
            multihost.print0(f"stopped by {name} after step {step}; run the same command to go on")


def _restore(
    checkpointer: Checkpointer, setup: Setup, frozen: Mapping[str, str]
) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns the state to go on from and the facts saved with it; None: there is none.

    Args:
      checkpointer: of the run.
      setup: tells where the state is to lie.
      frozen: fingerprints of the frozen weights.
    """
    restored = checkpointer.restore(setup.state_shapes)
    if restored is None:
        return None
    state, saved = restored
    check_frozen(saved, frozen)
    checkpointer.quarantine_after(saved["step"])
    multihost.print0(f"resumed from step {saved['step']}")
    return state, saved


def _announce(config: TrainConfig, mesh: Mesh, state: TrainState, frozen: Params) -> None:
    trained_count, frozen_count = (sum(x.size for x in p.values()) for p in (state.params, frozen))
    multihost.print0(
        f"{trained_count:,} trained and {frozen_count:,} frozen parameters "
        f"on {mesh.size} {mesh.devices.flat[0].platform} device(s)"
    )
    if frozen_count and not config.init_from:
        multihost.print0(
            "warning: the frozen ones are random; config.init_from takes pretrained ones"
        )
    multihost.print0(attention_kernels(config, mesh))


def _vote(signals: StopOnSignal, batches: DevicePrefetcher, checkpointer: Checkpointer) -> int:
    """Returns this process's reason to stop: a signal's number, `FAILED`, or 0 for none."""
    return signals.received or FAILED * bool(batches.failure or checkpointer.failure)


def _evaluate(
    few_shot: FewShot,
    frozen: Params,
    log: Progress,
    watchdog: Watchdog,
    vote: multihost.StopVote,
    step: int,
    state: TrainState,
    metrics: Mapping[str, Any],
) -> None:
    """Logs a step with its scores. Where a signal ends the evaluation, the step gets no line, by
    which the next start knows that it is owed."""
    with log.paused("evaluate"), watchdog.paused():
        scores = few_shot.scores({**state.params, **frozen}, step)
    if scores is None:
        vote.cast()  # so that this run ends after this very step
    else:
        log.defer(step, {**metrics, **scores})


def _signal_name(reason: tuple[int, int], failure: Exception | None) -> str:
    """Names the signal that the processes agreed to stop for; raises what else it was."""
    vote, process = reason
    if vote == FAILED:
        raise failure or UserError(f"process {process} failed; see what it printed")
    return signal.Signals(vote).name
