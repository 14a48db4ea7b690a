"""MMC4: zips of documents, and a directory of the images that were downloaded for them."""

import itertools
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flamingo_jax.data.fields import field
from flamingo_jax.data.parsers import assigned_passages
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.data.stores import expand
from flamingo_jax.prepare.documents import DocumentLimits
from flamingo_jax.prepare.images import ImageLimits, check_directory, read_image
from flamingo_jax.prepare.job import Unit
from flamingo_jax.prepare.options import REQUIRED, option
from flamingo_jax.prepare.survival import DroppedError, Tally
from flamingo_jax.prepare.writers import ArrayRecords, Sample, stored


@dataclass(frozen=True, kw_only=True)
class Mmc4(DocumentLimits, ImageLimits):
    """MMC4's documents (arXiv 2304.06939), each image assigned to one sentence."""

    shards: str = option(REQUIRED, "docs_shard_*.jsonl.zip, or .jsonl; a pattern")
    images: str = option(REQUIRED, "directory of images: NAME or SHARD/NAME, by `image_name`")
    min_image_bytes: int = option(11_000, "smaller files are dropped; 11000 is OpenFlamingo's")

    writer = ArrayRecords()

    def units(self) -> list[Unit]:
        check_directory(self.images)
        return [Unit(path) for path in expand(self.shards, "--shards")]

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        shard = Path(unit.path).name.split(".")[0]
        for number, line in _lines(unit.path, tally):
            key = f"{shard}/{number}"
            yield from tally.surviving(key, self._sample, key, shard, line, tally)

    def _sample(self, key: str, shard: str, line: bytes, tally: Tally) -> Sample:
        try:
            values = json.loads(line)
        except ValueError as error:
            raise BadRecordError(f"bad JSON: {error}") from error
        directories = [Path(self.images), Path(self.images, shard)]
        images: dict[int, bytes] = {}
        for index, info in enumerate(field(values, "image_info", list)):
            tally.images += 1
            name = info.get("image_name")
            try:
                data = read_image(directories, name)
                self.check(data)
            except DroppedError as error:
                tally.drop_image(f"{key}/{name}", error.reason, error.detail)
            else:
                images[index] = data
        passages = assigned_passages(values, images) if images else None
        return stored(key, self.kept(key, passages, tally))


def _lines(path: str, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yields numbered lines of a .jsonl file, or of those in a zip; counts what is damaged."""
    numbers = itertools.count()
    if not path.endswith(".zip"):
        with open(path, "rb") as file:
            yield from _numbered(file, numbers)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                try:
                    with archive.open(member) as file:
                        yield from _numbered(file, numbers)
                except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                    tally.lose_file(f"{Path(path).name}/{member.filename}", str(error))
    except zipfile.BadZipFile as error:
        tally.lose_file(Path(path).name, str(error))


def _numbered(lines: Iterable[bytes], numbers: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    return ((next(numbers), line) for line in lines if line.strip())
