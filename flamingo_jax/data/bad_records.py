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
    """Counts over a run, and a JSON-lines file of its bad records, each once.

    Continues a run at `start`: lines of later steps, which a killed run may have left, are dropped.

    Attributes:
      total: bad records of the whole run, its earlier parts included.
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
        """Take in what a step has drawn.

        Raises:
          UserError: more than `max_fraction` of all records were bad.
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
                f"{self._max_fraction} allows; the last: {last.shard}:{last.key}: {last.reason}"
                f"{written}"
            )


def _before(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] < step
    except json.JSONDecodeError:  # the process was killed while writing it
        return False
