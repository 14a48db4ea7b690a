"""Train a Flamingo: `python -m flamingo_jax.train --config=configs/digits.py --workdir=DIR`.

Run the same command again to go on from the last checkpoint. SIGTERM, SIGUSR1 or Ctrl-C saves and
exits with 0. On several hosts, start it once per host (docs/scaling.md).
"""

import signal
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import jax

from flamingo_jax import cli
from flamingo_jax.config import Config
from flamingo_jax.data.bad_records import BadRecordLog
from flamingo_jax.data.pipeline import Batches, StepSource, batches
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.in_training import few_shot
from flamingo_jax.schema import dump
from flamingo_jax.training import distributed
from flamingo_jax.training.checkpoint import Checkpointer, check_frozen, claim_workdir
from flamingo_jax.training.feed import Feed
from flamingo_jax.training.fingerprint import fingerprints
from flamingo_jax.training.kernels import attention_kernels
from flamingo_jax.training.metrics import MetricWriter
from flamingo_jax.training.profile import Profile
from flamingo_jax.training.setup import Run, set_up
from flamingo_jax.training.sharding import host_part, to_device
from flamingo_jax.training.signals import StopOnSignal
from flamingo_jax.training.speed import Speed, seconds_at_peak
from flamingo_jax.training.step import TrainState
from flamingo_jax.training.watchdog import Watchdog

FAILED = 64  # a vote beside the signals' numbers


def train(config: Config, workdir: Path, devices: list[jax.Device] | None = None) -> None:
    """One run, or the rest of one, from top to bottom, on these devices (default: all).

    Raises:
      UserError: the config does not fit itself, the devices or the working directory; the loss
        stayed NaN or infinite; data or a checkpoint failed, here or in another process.
    """
    stop = StopOnSignal()
    run = set_up(config, devices)
    claim_workdir(workdir, dump(config))
    checkpointer = Checkpointer(workdir, keep=config.keep_checkpoints, keep_every=config.keep_every)
    frozen = run.make_frozen()
    facts = {"version": 2, "config": dump(config), "frozen": fingerprints(frozen)}
    state, start = _first_state(run, checkpointer, facts["frozen"])
    trained_count, frozen_count = (sum(x.size for x in p.values()) for p in (state.params, frozen))
    _say(
        f"{trained_count:,} trained and {frozen_count:,} frozen parameters "
        f"on {run.mesh.size} {run.mesh.devices.flat[0].platform} device(s)"
    )
    _say(attention_kernels(config, run.mesh))

    own = workdir if distributed.is_first() else None  # what one process writes for all
    writer = MetricWriter(own, start=start, num_steps=config.num_steps)
    speed = Speed(
        own and own / "ledger.jsonl",
        start=start,
        per_step=_per_step(config),
        seconds_at_peak=seconds_at_peak(config, list(run.mesh.devices.flat)),
    )
    profile = Profile(workdir / "profile", config.profile_steps if own else ())
    reader = _read(run, workdir, start)
    feed = Feed(reader, config.num_steps - start)

    def vote() -> int:
        return stop.received or FAILED * bool(feed.failure or checkpointer.failure)

    agreement = distributed.Agreement(run.mesh, vote)
    step, previous = start, None  # metrics are read one step late: the device never waits for it
    with (
        Watchdog(config.watchdog_seconds, f"process {jax.process_index()}") as watchdog,
        closing(checkpointer),
        closing(reader),
        closing(writer),
        closing(profile),
    ):
        agreement.propose()
        while step < config.num_steps and not (reason := agreement.decision())[0]:
            step += 1
            with speed.aside("data"):
                batch, counts = feed.take()
            agreement.propose()
            device_batch = to_device(batch, run.mesh)
            profile.begin(step)
            with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
                state, metrics = run.train_step(state, frozen, device_batch)
            profile.end(step, metrics)
            _report(writer, speed, config, previous)
            scores: dict[str, float] = {}
            if config.evaluate_every and step % config.evaluate_every == 0:
                params = {**state.params, **frozen}
                with speed.aside("evaluate"), watchdog.paused():
                    scores = stop.unless_stopped(partial(few_shot, run, params, workdir, step), {})
            if previous is not None:  # every process has compiled
                watchdog.beat(f"step {step}")
            previous = step, {**metrics, **counts, **scores}
            if step % config.checkpoint_every == 0 or step == config.num_steps:
                with speed.aside("save"):
                    checkpointer.save(step, state, facts)
        _report(writer, speed, config, previous)
        if step < config.num_steps:
            _stop(reason, feed.failure or checkpointer.failure)
            checkpointer.save(step, state, facts)
            _say(
                f"stopped by {signal.Signals(reason[0]).name} after step {step}; "
                "run the same command to go on"
            )


def _first_state(
    run: Run, checkpointer: Checkpointer, frozen: dict[str, str]
) -> tuple[TrainState, int]:
    """The state to go on from and its step: of the last checkpoint, or the beginning."""
    restored = checkpointer.restore(run.state_like())
    if restored is None:
        return run.make_trained(), 0
    state, facts = restored
    check_frozen(facts, frozen)
    checkpointer.set_aside_after(facts["step"])
    _say(f"resumed from step {facts['step']}")
    return state, facts["step"]


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


def _per_step(config: Config) -> dict[str, int]:
    """What a step consumes; tokens are places of the rows, padding included."""
    streams = config.streams.values()
    return {
        "examples": sum(s.batch_size for s in streams),
        "tokens": sum(s.batch_size * s.text_length for s in streams),
        "images": sum(s.batch_size * s.num_images for s in streams),
    }


def _report(writer: MetricWriter, speed: Speed, config: Config, pending) -> None:
    if pending is None:
        return
    step, metrics = pending
    nonfinite = int(metrics["nonfinite_steps"])
    if nonfinite > config.max_nonfinite_steps:
        raise UserError(
            f"loss or gradient was NaN or infinite in {nonfinite} updates in a row, up to step "
            f"{step}: lower config.optimizer.learning_rate, or start from an earlier checkpoint"
        )
    speed.begin(step)
    evaluated = config.evaluate_every and step % config.evaluate_every == 0
    if evaluated or step % config.log_every == 0 or step in (1, config.num_steps):
        values = {name: float(value) for name, value in metrics.items()}
        writer.write(step, values, speed.facts(step))


def _stop(reason: tuple[int, int], failure: Exception | None) -> None:
    """Raise what the processes agreed to stop for, if it is no signal."""
    vote, process = reason
    if vote == FAILED:
        raise failure or UserError(f"process {process} failed; see what it printed")


def _say(message: str) -> None:
    if distributed.is_first():
        print(message, flush=True)


def main(argv: Sequence[str]) -> None:
    config = cli.parse_config(argv)
    with distributed.joined():
        train(config, cli.workdir())


if __name__ == "__main__":
    cli.run(main)
