"""Compilations of a function, counted: after the first, each is a wait that nobody asked for."""

import sys
from typing import Any

import jax

from flamingo_jax.runtime.compiler_memory import COMPILED


class Compilations:
    """Counts the compilations of one jitted function, of which JAX tells, until it is closed.

    Attributes:
      count: programs made of the function since this object was made.
      seconds: what they took: tracing, lowering and compiling.
    """

    def __init__(self, function: str):
        self.count = 0
        self.seconds = 0.0
        self._names = (function, f"jit({function})")
        self._seen = 0
        self._shapes: dict[str, str] | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if kwargs.get("fun_name") in self._names:
            self.seconds += duration_secs
            self.count += event == COMPILED

    def check(self, step: int, batch: Any) -> None:
        """Warns where a step's call compiled it, unless it is the first one checked."""
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): jax.typeof(leaf).str_short()
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        }
        if self._shapes is not None and self.count > self._seen:
            print(f"warning: step {step} was compiled anew: {_difference(self._shapes, shapes)}",
                  file=sys.stderr, flush=True)  # fmt: skip
        self._seen, self._shapes = self.count, shapes

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)


def _difference(before: dict[str, str], now: dict[str, str]) -> str:
    changed = [
        f"{path} was {before.get(path, 'absent')}, is now {now.get(path, 'absent')}"
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path)
    ]
    return "; ".join(changed) or "its batch has the shapes of the one before"
