"""What a run tells as it goes: metrics one step late, its speed, and what made it wait."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.parallel import multihost
from flamingo_jax.train.compilations import Compilations
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.few_shot import delete_results_after
from flamingo_jax.train.metrics import MetricWriter, floats
from flamingo_jax.train.speed import Throughput, seconds_at_peak
from flamingo_jax.train.start_up import StartupTimer
from flamingo_jax.train.vision_cache import VisionCache


class Progress:
    """Logs a run from step `start` on, and forgets what later steps left. One process writes.

    Args:
      start_up: what came before.
      cache: its counters go into the ledger.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        workdir: Path,
        start: int,
        start_up: StartupTimer,
        cache: VisionCache | None = None,
    ):
        delete_results_after(workdir, start)
        own = workdir if multihost.is_lead_process() else None
        self._config = config
        self._start = start
        self._start_up = start_up
        self._compiled = Compilations("train_step")
        self._writer = MetricWriter(own, start=start, num_steps=config.num_steps)
        self._speed = Throughput(
            own and own / "ledger.jsonl",
            start=start,
            per_step=_per_step(config),
            seconds_at_peak=seconds_at_peak(config, list(mesh.devices.flat)),
            counters={
                "compiled": lambda: self._compiled.count,
                **(cache.counters if cache else {}),
            },
        )
        self._last: tuple[int, Mapping[str, Any]] | None = None

    def paused(self, what: str, pending: Any = ()) -> AbstractContextManager[None]:
        """Excludes the time inside from goodput; see `Throughput.paused`."""
        return self._speed.paused(what, pending)

    def step_dispatched(self, step: int, batch: Any, metrics: Mapping[str, jax.Array]) -> None:
        """Warns of a step that was compiled anew; waits for the first one, as it had to compile."""
        self._compiled.check(step, batch)
        if step != self._start + 1:
            return
        jax.block_until_ready(metrics)
        self._start_up.done("compilation", self._compiled.seconds)
        self._start_up.done("first step")
        self._speed.begin(step, self._start_up.parts)
        multihost.print0(f"the first step ended after {self._start_up}")

    def flush(self) -> None:
        """Waits for the step that was deferred, if there is one, and logs it where asked for.

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
        wanted = due(step, config.evaluate_every) or due(step, config.log_every)
        if wanted or step in (1, config.num_steps):
            self._writer.write(step, floats(metrics), self._speed.facts(step))

    def defer(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes what a step computes, to be flushed when the next step has been dispatched."""
        self._last = step, metrics

    def close(self) -> None:
        self._writer.close()
        self._compiled.close()


def due(step: int, every: int) -> bool:
    """Whether something is to be done after this step; 0: never."""
    return bool(every) and step % every == 0


def _per_step(config: TrainConfig) -> dict[str, int]:
    """Counts what a step consumes; tokens and images with the padding of their rows."""
    streams = config.streams.values()
    return {
        "examples": sum(s.batch_size * s.documents_per_row for s in streams),
        "tokens": sum(s.batch_size * s.text_length for s in streams),
        "images": sum(s.batch_size * s.row_images for s in streams),
    }
