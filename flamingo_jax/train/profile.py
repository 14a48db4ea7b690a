"""A profiler's trace of chosen steps."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces `count` steps from `first` on into `folder`, for TensorBoard or Perfetto.

    Args:
      steps: (first, count), or nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...]):
        self._folder = folder
        first, count = steps or (0, 0)
        self._first, self._last = first, first + count - 1
        self._running = False

    def begin(self, step: int) -> None:
        """Before a step."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def end(self, step: int, results: Any) -> None:
        """After a step, with what it computes: the last traced one is waited for."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
