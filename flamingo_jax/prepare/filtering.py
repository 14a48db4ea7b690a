"""Records whose images fit their texts well enough, by the similarities that `score` wrote."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flamingo_jax.data.records import Record
from flamingo_jax.data.stores import Store
from flamingo_jax.errors import UserError
from flamingo_jax.prepare.documents import DocumentLimits
from flamingo_jax.prepare.img2dataset import store_records
from flamingo_jax.prepare.job import Unit, made_of
from flamingo_jax.prepare.options import REQUIRED, option
from flamingo_jax.prepare.similarity import opened, passages_of
from flamingo_jax.prepare.survival import DroppedError, Tally
from flamingo_jax.prepare.writers import ArrayRecords, JsonLines, Sample, stored


@dataclass(frozen=True, kw_only=True)
class Filter(DocumentLimits):
    """Keep what is similar enough, and store the similarities."""

    scores: str = option(REQUIRED, "directory that `score` wrote; it names the shards")

    writer = ArrayRecords()

    def units(self) -> list[Unit]:
        paths = self._store().paths
        if paths != made_of(Path(self.scores), "score")["inputs"]:
            raise UserError(
                f"{self.scores} was made of other shards than are there now: score again"
            )
        return [Unit(path, index) for index, path in enumerate(paths)]

    def _store(self) -> Store:
        settings = made_of(Path(self.scores), "score")
        return opened(settings["shards"], settings["index_dir"])

    def samples(self, unit: Unit, tally: Tally) -> Iterator[Sample]:
        store = self._store()
        name = JsonLines().name(unit.start, len(store.paths))
        with (Path(self.scores) / name).open() as file:
            lines = [json.loads(line) for line in file]
        scores = {line["record"]: line["sim"] for line in lines}
        for index, record in store_records(store, unit.start, tally):
            similarity = scores.get(index)
            yield from tally.surviving(record.key, self._sample, record, similarity, tally)

    def _sample(self, record: Record, scores: list[float | None] | None, tally: Tally) -> Sample:
        if scores is None:
            raise DroppedError("not scored")
        passages = passages_of(record)
        tally.images += len(passages.images)
        similarity = tuple(0.0 if score is None else score for score in scores)
        passages = dataclasses.replace(passages, similarity=similarity)
        return stored(record.key, self.kept(record.key, passages, tally))
