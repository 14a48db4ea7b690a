"""The transform of one shard, whoever runs it: idempotent, and visible only when complete."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flamingo_jax.errors import UserError
from flamingo_jax.files import replaced, write_text
from flamingo_jax.prepare.survival import Tally
from flamingo_jax.prepare.writers import Sample, Writer
from flamingo_jax.schema import dump


@dataclass(frozen=True)
class Unit:
    """What becomes one shard: a file, or the parts [start, stop) of one."""

    path: str
    start: int = 0
    stop: int = 0


class Preparation(Protocol):
    """One kind of corpus and its settings: a frozen dataclass, whose fields are flags."""

    @property
    def writer(self) -> Writer: ...

    def units(self) -> list[Unit]:
        """Returns the inputs, in the order of the shards. UserError: there are none."""
        ...

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        """Yields what is to be written of one input; counts whatever is not."""
        ...


@dataclass(frozen=True)
class Job:
    """A corpus to be prepared into a directory.

    corpus files                 as the preparation's writer lays them out
    report/00000-of-00010.json   of each shard: counts, and every drop with its key and reason
    settings.json                what the directory was made with
    survival.json                counts over all shards, when all are there
    """

    preparation: Preparation
    out: Path
    units: tuple[Unit, ...]

    def target(self, index: int) -> Path:
        return self.out / self.preparation.writer.name(index, len(self.units))

    def report(self, index: int) -> Path:
        return self.out / f"report/{index:05d}-of-{len(self.units):05d}.json"

    def todo(self) -> list[int]:
        return [index for index in range(len(self.units)) if not self.target(index).exists()]

    def make(self, index: int) -> int:
        """Makes a shard, unless it is there; returns its number.

        Raises:
          UserError: files cannot be read or written.
        """
        if self.target(index).exists():
            return index
        unit, tally = self.units[index], Tally()
        try:
            with replaced(self.target(index)) as temporary:
                samples = self.preparation.samples(unit, tally)
                self.preparation.writer.write(temporary, tally.counted(samples))
                # First the report: a shard that is there has one.
                with replaced(self.report(index)) as report:
                    report.write_text(tally.to_json(input=dataclasses.asdict(unit)))
        except OSError as error:
            if self.target(index).exists():  # another process made the same, and cleared up
                return index
            raise UserError(
                f"{self.target(index)}, made of {unit.path}: {error}; run the same command again "
                "when this is mended: finished shards are kept"
            ) from error
        return index

    def begin(self) -> None:
        """Begins or goes on. UserError: the directory has other settings, or cannot be written."""
        settings = json.loads(
            json.dumps(
                {
                    "preparation": type(self.preparation).__name__,
                    **dump(self.preparation),
                    "inputs": [unit.path for unit in self.units],
                }
            )
        )
        path = self.out / "settings.json"
        if path.is_file():
            kept = json.loads(path.read_text())
            other = sorted(k for k in kept | settings if kept.get(k) != settings.get(k))
            if other:
                raise UserError(
                    f"{self.out} was begun with other settings ({', '.join(other)}): prepare into "
                    "another directory, or remove this one"
                )
            return
        try:
            (self.out / "report").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.out} cannot be written: {error.strerror}") from None
        write_text(path, json.dumps(settings, indent=1) + "\n")

    def finish(self) -> Tally:
        """Merge the reports and register the shards; all must be there."""
        total, sizes = Tally(), []
        for index in range(len(self.units)):
            tally = Tally.read(self.report(index))
            sizes.append(tally.kept)
            total.add(tally)
        self.preparation.writer.finish(self.out, sizes)
        counts = {**vars(total), "shards": len(sizes)}
        del counts["drops"]  # they are in the reports of the shards
        write_text(self.out / "survival.json", json.dumps(counts, indent=1) + "\n")
        for folder in (self.out, self.out / "report"):
            for leftover in folder.glob(".*.tmp"):  # of processes that were killed
                if not leftover.name.startswith(".survival.json."):  # another part may end now, too
                    leftover.unlink(missing_ok=True)
        return total


def made_of(directory: Path, command: str) -> dict[str, Any]:
    """Returns the settings that a command made a directory with. UserError: it did not, or not
    whole."""
    settings = directory / "settings.json"
    values = json.loads(settings.read_text()) if settings.is_file() else {}
    if (
        values.get("preparation", "").lower() != command
        or not (directory / "survival.json").is_file()
    ):
        raise UserError(
            f"{directory} holds no complete output of `{command}`: run `python -m "
            f"flamingo_jax.prepare {command}` to its end, with this directory as --out"
        )
    return values
