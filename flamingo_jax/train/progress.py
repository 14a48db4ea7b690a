"""What a run tells as it goes: metrics one step late, its speed, and what made it wait."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from flamingo_jax.errors import UserError
from flamingo_jax.parallel import multihost
from flamingo_jax.train.compilations import Compilations
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.metrics import MetricWriter, floats
from flamingo_jax.train.setup import Run
from flamingo_jax.train.speed import Throughput, seconds_at_peak
from flamingo_jax.train.start_up import StartupTimer


class Progress:
    """Of one run, or the rest of one. Every process has it, one writes.

    Args:
      workdir: of the run.
      start: the step that the run goes on from.
      start_up: what came before.
      counters: further facts for the ledger.
    """

    def __init__(
        self,
        run: Run,
        workdir: Path,
        start: int,
        start_up: StartupTimer,
        counters: Mapping[str, Callable[[], float]],
    ):
        own = workdir if multihost.is_lead_process() else None
        self._config = config = run.config
        self._start = start
        self._start_up = start_up
        self._compiled = Compilations("train_step")
        self._writer = MetricWriter(own, start=start, num_steps=config.num_steps)
        self._speed = Throughput(
            own and own / "ledger.jsonl",
            start=start,
            per_step=_per_step(config),
            seconds_at_peak=seconds_at_peak(config, list(run.mesh.devices.flat)),
            counters={"compiled": lambda: self._compiled.count, **counters},
        )
        self._last: tuple[int, Mapping[str, Any]] | None = None

    def paused_for(self, what: str, beside: Any = ()) -> AbstractContextManager[None]:
        """See `Speed.aside`."""
        return self._speed.paused_for(what, beside)

    def sent(self, step: int, batch: Any, metrics: Mapping[str, jax.Array]) -> None:
        """A step went to the devices. The first one is waited for, as it waited for its program."""
        self._compiled.check(step, batch)
        if step != self._start + 1:
            return
        jax.block_until_ready(metrics)
        self._start_up.done("compilation", self._compiled.seconds)
        self._start_up.done("first step")
        self._speed.begin(step, self._start_up.parts)
        multihost.print0(f"the first step ended after {self._start_up}")

    def finish_last(self) -> None:
        """Wait for the last step that was noted, if it was not yet, and log it where asked for.

        Raises:
          UserError: too many updates in a row were not finite.
        """
        if self._last is None:
            return
        (step, metrics), self._last = self._last, None
        config = self._config
        nonfinite = int(metrics["nonfinite_steps"])
        if nonfinite > config.max_nonfinite_steps:
            raise UserError(
                f"loss or gradient was NaN or infinite in {nonfinite} updates in a row, up to step "
                f"{step}: lower config.optimizer.learning_rate, or start from an earlier checkpoint"
            )
        evaluated = config.evaluate_every and step % config.evaluate_every == 0
        if evaluated or step % config.log_every == 0 or step in (1, config.num_steps):
            self._writer.write(step, floats(metrics), self._speed.facts(step))

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """What a step computes, to be looked at when the next step has been sent."""
        self._last = step, metrics

    def close(self) -> None:
        self._writer.close()
        self._compiled.close()


def _per_step(config: TrainConfig) -> dict[str, int]:
    """What a step consumes; tokens and images are places of the rows, padding included."""
    streams = config.streams.values()
    return {
        "examples": sum(s.batch_size * s.documents_per_row for s in streams),
        "tokens": sum(s.batch_size * s.text_length for s in streams),
        "images": sum(s.batch_size * s.row_images for s in streams),
    }
