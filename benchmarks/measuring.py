"""Clocks, peak memory, and processes of their own for what is measured."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report

Run = Callable[[], Any]


def seconds(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def allow_tf32(torch_device: str | None) -> None:
    """PyTorch multiplies float32 on a GPU's tensor cores, as JAX does by itself."""
    if torch_device == "cuda":
        import torch

        torch.set_float32_matmul_precision("high")


def by_turns(
    ours: Run, peer: Run, turns: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, float]:
    """Returns the median seconds of both, called in turns, and the median of the turns' ours /
    peer."""
    times = np.array([(seconds(ours, clock), seconds(peer, clock)) for _ in range(turns)])
    mine, theirs = np.median(times, axis=0)
    return float(mine), float(theirs), float(np.median(times[:, 0] / times[:, 1]))


def add_rate(
    table: Report,
    name: str,
    ours: Run,
    peer: Run | None,
    count: int,
    turns: int,
    *,
    unit: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """A row in items per second, of runs over `count` items; None: no peer."""
    if peer is None:
        table.add(name, count / np.median([seconds(ours, clock) for _ in range(turns)]), unit=unit)
        return
    mine, theirs, ratio = by_turns(ours, peer, turns, clock)
    table.add(name, count / mine, count / theirs, unit=unit, ratio=1 / ratio)


def check_agree(name: str, ours: Any, peer: Any, tolerance: float) -> None:
    """Raises SystemExit where the two differ, so that their times would say nothing."""
    if not np.allclose(ours, peer, rtol=0, atol=tolerance):
        raise SystemExit(f"{name}: the two do not agree, so their times cannot be compared")


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a module's function gives, from a new process: its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def anonymous_bytes() -> int:
    """Returns the memory of this process that is not a file's pages (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Peak:
    """Highest anonymous memory while inside, sampled every few milliseconds.

    Attributes:
      start: bytes at entry.
      highest: bytes, entry included.
    """

    def __enter__(self) -> "Peak":
        self.start = self.highest = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(0.005)

    def __exit__(self, *error: object) -> None:
        self.highest = max(self.highest, anonymous_bytes())
        self._done.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        """Returns the bytes above those at entry."""
        return self.highest - self.start
