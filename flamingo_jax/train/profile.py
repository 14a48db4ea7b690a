"""A profiler's trace of chosen steps."""

from pathlib import Path
from typing import Any

import jax

from flamingo_jax.parallel.multihost import is_lead_process


class Profile:
    """Traces `count` steps from `first` on into `folder`, for TensorBoard or Perfetto.

    Of several processes, the lead process does.

    Args:
      steps: (first, count), or nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...]):
        self._folder = folder
        first, count = steps if steps and is_lead_process() else (0, 0)
        self._steps = range(first, first + count)
        self._running = False

    def step(self, step: int, results: Any) -> None:
        """Begins or ends the trace before a step; waits for `results` of the last one traced."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        if self._running and step not in self._steps:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
