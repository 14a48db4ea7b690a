"""Pairs as img2dataset writes them: tars of an image, its caption and facts about both."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_jax.data.fields import json_object
from flamingo_jax.data.parsers import pair_passages
from flamingo_jax.data.records import BadRecordError, Record
from flamingo_jax.data.stores import Store, TarStore, expand
from flamingo_jax.data.tar_index import scan_tar
from flamingo_jax.errors import UserError
from flamingo_jax.prepare.images import ImageLimits
from flamingo_jax.prepare.job import Unit
from flamingo_jax.prepare.options import REQUIRED, option
from flamingo_jax.prepare.survival import DAMAGED, DroppedError, Tally
from flamingo_jax.prepare.writers import ArrayRecords, Sample, stored


@dataclass(frozen=True, kw_only=True)
class Img2dataset(ImageLimits):
    """Image–caption pairs."""

    shards: str = option(REQUIRED, "tars; a pattern")
    min_words: int = option(1, "captions of fewer words are dropped")
    max_words: int = option(0, "captions of more words are dropped; 0: none is")
    at_least: tuple[str, ...] = option(
        (), "FIELD=NUMBER of the json, as in similarity=0.3: pairs below are dropped"
    )
    at_most: tuple[str, ...] = option(
        (), "FIELD=NUMBER of the json, as in punsafe=0.5: pairs above are dropped"
    )
    dedupe: bool = option(True, "drop pairs whose image and caption were in the same tar before")

    writer = ArrayRecords()

    def __post_init__(self) -> None:
        _limits(self.at_least)
        _limits(self.at_most)

    def units(self) -> list[Unit]:
        return [Unit(path) for path in expand(self.shards, "--shards")]

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        seen: set[bytes] = set()
        with tempfile.TemporaryDirectory() as index_dir:
            try:
                store = TarStore([unit.path], index_dir, lambda path: _index(path, tally))
            except UserError as error:
                tally.lose_file(Path(unit.path).name, str(error))
                return
            for _, record in store_records(store, 0, tally):
                yield from tally.surviving(record.key, self._sample, record, seen, tally)

    def _sample(self, record: Record, seen: set[bytes], tally: Tally) -> Sample:
        passages = pair_passages(record)
        caption, image = passages.texts[0], passages.image(0)
        if not isinstance(caption, str) or not caption.strip():
            raise DroppedError("no caption")
        words = len(caption.split())
        if words < self.min_words or 0 < self.max_words < words:
            raise DroppedError("too few or too many words", str(words))
        if self.at_least or self.at_most:
            self._check_facts(json_object(record))
        digest = hashlib.sha256(image + b"\0" + caption.encode()).digest()
        if self.dedupe and digest in seen:
            raise DroppedError("duplicate")
        tally.images += 1
        self.check(image)
        seen.add(digest)
        tally.images_kept += 1
        return stored(record.key, passages)

    def _check_facts(self, facts: Mapping[str, Any]) -> None:
        for limits, sign in ((self.at_least, 1), (self.at_most, -1)):
            for name, limit in _limits(limits).items():
                value = facts.get(name)
                if not isinstance(value, (int, float)):
                    raise DroppedError(f"no {name}", repr(value))
                if not sign * value >= sign * limit:
                    raise DroppedError(f"{name} out of limits", str(value))


def _index(path: str, tally: Tally) -> np.ndarray:
    index, lost = scan_tar(path)
    if lost:
        tally.lose_file(Path(path).name, "; ".join(lost))
    return index


def _limits(given: tuple[str, ...]) -> dict[str, float]:
    """Reads FIELD=NUMBER. UserError: not of that form."""
    try:
        return {name: float(value) for name, value in (text.split("=") for text in given)}
    except ValueError:
        raise UserError(
            f"limits are given as {', '.join(given)}; expected FIELD=NUMBER, as in similarity=0.3"
        ) from None


def store_records(store: Store, shard: int, tally: Tally) -> Iterator[tuple[int, Record]]:
    """Yields the records of a shard with their numbers; counts those that cannot be read."""
    for index in range(int(store.sizes[shard])):
        try:
            yield index, store.record(shard, index)
        except BadRecordError as error:
            tally.documents += 1
            tally.drop(f"record {index}", DAMAGED, str(error))
