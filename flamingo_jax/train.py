"""Train a Flamingo: `python -m flamingo_jax.train --config=configs/digits.py --workdir=DIR`.

Run the same command again to go on from the last checkpoint. SIGTERM saves and exits with 0.
"""

import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import jax

from flamingo_jax import cli
from flamingo_jax.config import Config
from flamingo_jax.data.bad_records import BadRecordLog
from flamingo_jax.data.pipeline import StepSource, batches
from flamingo_jax.errors import UserError
from flamingo_jax.schema import dump
from flamingo_jax.training.checkpoint import Checkpointer, claim_workdir, state_shapes
from flamingo_jax.training.metrics import MetricWriter
from flamingo_jax.training.setup import set_up
from flamingo_jax.training.sharding import to_device


def train(config: Config, workdir: Path, devices: list[jax.Device] | None = None) -> None:
    """One run, or the rest of one, from top to bottom, on these devices (default: all).

    Raises:
      UserError: the config does not fit itself, the devices or the working directory; the loss
        stayed NaN or infinite.
    """
    stop = StopOnSignal()
    run = set_up(config, devices)
    claim_workdir(workdir, dump(config))
    checkpointer = Checkpointer(workdir, keep=config.keep_checkpoints)

    state, frozen = run.make_state()
    start = 0
    if checkpointer.latest_step is not None:
        state, data_state = checkpointer.restore(state_shapes(state, run.state_shardings))
        start = data_state["step"]
        print(f"resumed from step {start}", flush=True)
    trained_count, frozen_count = (sum(x.size for x in p.values()) for p in (state.params, frozen))
    print(
        f"{trained_count:,} trained and {frozen_count:,} frozen parameters "
        f"on {run.mesh.size} {run.mesh.devices.flat[0].platform} device(s)",
        flush=True,
    )

    source = StepSource(
        run.streams, config.seed, config.num_steps, jax.process_index(), jax.process_count()
    )
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
    writer = MetricWriter(
        workdir,
        start=start,
        num_steps=config.num_steps,
        examples_per_step=sum(s.batch_size for s in config.streams.values()),
    )
    previous = None  # metrics are read one step late, so that the device never waits for the host
    with closing(checkpointer), closing(reader), closing(writer):
        for step, batch in enumerate(reader, start + 1):
            device_batch = to_device(batch, run.mesh)
            with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
                state, metrics = run.train_step(state, frozen, device_batch)
            _report(writer, config, previous)
            counts = {"bad_records": bad_records.total} if source.reads_files else {}
            previous = step, {**metrics, **counts}
            if step % config.checkpoint_every == 0 or step == config.num_steps or stop.received:
                checkpointer.save(state, {"version": 1, "step": step})
            if stop.received:
                print(
                    f"stopped by {stop.received} after step {step}; run the same command to go on"
                )
                break
        _report(writer, config, previous)


def _report(writer: MetricWriter, config: Config, pending) -> None:
    if pending is None:
        return
    step, metrics = pending
    nonfinite = int(metrics["nonfinite_steps"])
    if nonfinite > config.max_nonfinite_steps:
        raise UserError(
            f"loss or gradient was NaN or infinite in {nonfinite} updates in a row, up to step "
            f"{step}: lower config.optimizer.learning_rate, or start from an earlier checkpoint"
        )
    if step % config.log_every == 0 or step in (1, config.num_steps):
        writer.write(step, {name: float(value) for name, value in metrics.items()})


class StopOnSignal:
    """Remembers SIGTERM or SIGINT, to be acted on between two steps."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once


def main(argv: Sequence[str]) -> None:
    config = cli.parse_config(argv)
    train(config, cli.workdir())


if __name__ == "__main__":
    cli.run(main)
