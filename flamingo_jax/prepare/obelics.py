"""OBELICS: parquet files of texts and image addresses, and the images that were downloaded."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_jax.data.fields import field
from flamingo_jax.data.parsers import sequence_passages
from flamingo_jax.data.stores import expand
from flamingo_jax.errors import UserError, need_package
from flamingo_jax.prepare.documents import DocumentLimits
from flamingo_jax.prepare.images import ImageLimits, check_directory, read_image
from flamingo_jax.prepare.job import Unit
from flamingo_jax.prepare.options import REQUIRED, option
from flamingo_jax.prepare.survival import DroppedError, Tally
from flamingo_jax.prepare.writers import ArrayRecords, Sample, stored


def image_name(url: str) -> str:
    """Returns the file an image is looked for in: `ab/abcd….`, the SHA-256 of its address, no
    ending."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{digest[:2]}/{digest}"


@dataclass(frozen=True, kw_only=True)
class Obelics(DocumentLimits, ImageLimits):
    """OBELICS' documents (arXiv 2306.16527): `images` and `texts`, one of both in each place."""

    parquet: str = option(REQUIRED, "parquet files; a pattern")
    images: str = option(REQUIRED, "directory of images, named by the SHA-256 of their address")
    row_groups: int = option(0, "of a parquet file in one shard; 0: all")

    writer = ArrayRecords()

    def units(self) -> list[Unit]:
        check_directory(self.images)
        parquet = need_package("pyarrow.parquet", "prepare")
        found = []
        for path in expand(self.parquet, "--parquet"):
            try:
                groups = parquet.read_metadata(path).num_row_groups
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is no parquet file that can be read: {error}") from None
            step = self.row_groups or max(groups, 1)
            found += [Unit(path, i, min(i + step, groups)) for i in range(0, groups, step)]
        return found

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        parquet = need_package("pyarrow.parquet", "prepare")
        with parquet.ParquetFile(unit.path) as file:
            for group in range(unit.start, unit.stop):
                key = f"{Path(unit.path).stem}/{group}"
                try:
                    rows = file.read_row_group(group, columns=["images", "texts"]).to_pylist()
                except (OSError, ValueError) as error:
                    tally.lose_file(key, str(error))
                    continue
                for number, row in enumerate(rows):
                    name = f"{key}/{number}"
                    yield from tally.surviving(name, self._sample, name, row, tally)

    def _sample(self, key: str, row: dict[str, Any], tally: Tally) -> Sample:
        loaded: dict[str, bytes] = {}
        names = []
        for url in field(row, "images", list):
            data = None if url is None else self._load(key, url, tally)
            names.append(None if data is None else url)
            if data is not None:
                loaded[url] = data
        passages = sequence_passages({**row, "images": names}, loaded.__getitem__)
        return stored(key, self.kept(key, passages, tally))

    def _load(self, key: str, url: str, tally: Tally) -> bytes | None:
        tally.images += 1
        try:
            data = read_image([Path(self.images)], image_name(url))
            self.check(data)
        except DroppedError as error:
            tally.drop_image(f"{key}/{url}", error.reason, error.detail)
            return None
        return data
