"""Memory that the compiler worked with, given back to the system.

Compiling a training step takes hundreds of MiB, and reading a kept one some tens. The C library
keeps them for what comes next; but the arrays of a step are too large to go there.
"""

import ctypes
import sys
from functools import cache

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # or read from the persistent cache
FEWEST_SECONDS = 0.1


@cache
def trim_malloc() -> None:
    """Trims memory after each compilation that takes a while, from now on; with glibc only."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        jax.monitoring.register_event_duration_secs_listener(_listen)


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED and duration_secs >= FEWEST_SECONDS:
        _trim()


def _trim() -> None:
    ctypes.CDLL(None).malloc_trim(0)
