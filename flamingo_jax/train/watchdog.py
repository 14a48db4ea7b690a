"""Ends a process whose step does not end."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = 70
STDERR = 2  # the file itself: `sys.stderr` may be something in memory


class Watchdog:
    """Prints the stacks of all threads when `beat` was not called for `seconds`, and ends the
    process when it was not for twice as long; so a dead process never hangs the others.

    It begins with the first `beat`, so that compilation is not timed. 0 seconds: never.
    """

    def __init__(self, seconds: float, name: str = "this process"):
        self._seconds = seconds
        self._name = name
        self._last: float | None = None
        self._what = ""
        self._closed = threading.Event()

    def beat(self, what: str) -> None:
        """Tells that `what` begins now."""
        self._what, self._last = what, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch what is inside, which may take long, such as an evaluation."""
        last, self._last = self._last, None
        try:
            yield
        finally:
            self._last = None if last is None else time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_error) -> None:
        self._closed.set()

    def _watch(self) -> None:
        warned = None
        while not self._closed.wait(min(self._seconds / 10, 10)):
            last = self._last
            late = 0 if last is None else time.monotonic() - last
            if late > self._seconds and warned != last:
                warned = last
                self._print(f"has taken more than {self._seconds:g} s; its threads are at:")
                faulthandler.dump_traceback(STDERR, all_threads=True)
            if late > 2 * self._seconds:
                self._print(f"has taken more than {2 * self._seconds:g} s: giving up")
                os._exit(EXIT_STATUS)

    def _print(self, message: str) -> None:
        print(f"{self._name}: {self._what} {message}", file=sys.stderr, flush=True)
