"""How long a run takes to begin."""

import os
import time
from pathlib import Path

IMPORTED = time.monotonic()


class StartupTimer:
    """Measures the seconds until the end of the first step, by what took them.

    Args:
      began: when, of `time.monotonic`; None: now.

    Attributes:
      parts: what was done → seconds, in their order.
    """

    def __init__(self, began: float | None = None):
        self.parts: dict[str, float] = {}
        self._last = time.monotonic() if began is None else began

    def done(self, part: str, seconds: float | None = None) -> None:
        """Adds the time since the last call, or these seconds of it, to `part`."""
        now = time.monotonic()
        seconds = now - self._last if seconds is None else min(seconds, now - self._last)
        self._last += seconds
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"{self.total:.1f} s ({parts})"


def process_began() -> float:
    """Returns when this process was started, of `time.monotonic`; where the platform does not tell
    (it is not Linux), when this module was imported."""
    try:
        # Field 22: ticks since the machine started. The name before it may have spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return IMPORTED
    return min(time.monotonic() - age, IMPORTED)
