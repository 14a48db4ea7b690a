"""What was drawn and could not be used: counted, written down, and too much of it stops the run."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flamingo_jax.errors import UserError
from flamingo_jax.files import write_text

FEWEST = 100  # records drawn before their bad fraction says anything


@dataclass(frozen=True)
class BadEntry:
    """One bad record: where it was drawn, where it lies, and what is wrong with it."""

    step: int
    stream: str
    position: int
    shard: str
    key: str
    reason: str


@dataclass
class Drawn:
    """What went into the batches of one step."""

    records: int = 0  # drawn, those that could not be used included
    rejected: int = 0  # sound, but left out by a setting
    bad: list[BadEntry] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Drawn":
        values = json.loads(text)
        return cls(**{**values, "bad": [BadEntry(**entry) for entry in values["bad"]]})


class BadRecordLog:
    """Counts of what one process has drawn since it started, and a JSON-lines file of the bad
    records among it, each once, which goes on over the parts of a run.

    Continues a run at `start`: lines of later steps, which a killed run may have left, are dropped.
    Sound records are not written down, so a share of bad ones is known of this part alone.

    Attributes:
      records, rejected, bad: drawn since the process started, see `Drawn`.
      total: bad records, those that earlier parts left in the file included.
    """

    def __init__(self, path: Path | None, *, start: int = 0, max_fraction: float = 1.0):
        self.records = self.rejected = self.bad = self.total = 0
        self._path = path
        self._max_fraction = max_fraction
        if path is not None and path.exists():
            kept = [line for line in path.read_text().splitlines(True) if _before(line, start)]
            write_text(path, "".join(kept))
            self.total = len(kept)

    def add(self, drawn: Drawn) -> None:
        """Takes in what a step has drawn.

        Raises:
          UserError: more than `max_fraction` of the records since the start were bad; of less than
            `FEWEST` records, more than that share of `FEWEST`.
        """
        self.records += drawn.records
        self.rejected += drawn.rejected
        self.bad += len(drawn.bad)
        self.total += len(drawn.bad)
        if not drawn.bad:
            return
        if self._path is not None:
            with self._path.open("a") as file:
                file.writelines(json.dumps(asdict(entry)) + "\n" for entry in drawn.bad)
        if self.bad > self._max_fraction * max(self.records, FEWEST):
            last = drawn.bad[-1]
            written = f"; all are in {self._path}" if self._path else ""
            raise UserError(
                f"{self.bad} of {self.records} records are bad, more than data.max_bad_fraction "
                f"{self._max_fraction} allows, counted since this process started; the last: "
                f"{last.shard}:{last.key}: {last.reason}{written}"
            )


def _before(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] < step
    except json.JSONDecodeError:  # the process was killed while writing it
        return False
