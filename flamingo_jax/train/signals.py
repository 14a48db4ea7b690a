"""Signals that ask a run to stop."""

import signal

# SIGUSR1 is what SLURM can send ahead of a job's end; see docs/scaling.md.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal:
    """Remembers a signal, to be acted on between two steps. A second Ctrl-C ends at once.

    The handler raises nothing: what is raised while Python collects garbage is lost.

    Attributes:
      received: the signal's number; 0: none.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in STOPPING:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
