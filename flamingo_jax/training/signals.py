"""Signals that ask a run to stop."""

import signal
from collections.abc import Callable
from typing import TypeVar

import jax

T = TypeVar("T")

# SIGUSR1 is what SLURM can send ahead of a job's end; see docs/scaling.md.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal:
    """Remembers a signal, to be acted on between two steps. A second Ctrl-C ends at once.

    Attributes:
      received: the signal's number; 0: none.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in STOPPING:
            signal.signal(number, self._receive)
        self._interrupts = False

    def unless_stopped(self, work: Callable[[], T], otherwise: T) -> T:
        """What `work` gives, or `otherwise` where a signal ends it.

        Of several processes none leaves the others alone: there the work is done to its end.
        """
        if jax.process_count() > 1:
            return work()
        if self.received:
            return otherwise
        self._interrupts = True
        try:
            return work()
        except _Stopped:
            return otherwise
        finally:
            self._interrupts = False

    def _receive(self, number: int, _frame) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if self._interrupts:
            self._interrupts = False
            raise _Stopped


class _Stopped(BaseException):
    """Passes through whatever handles errors."""
