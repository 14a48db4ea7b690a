"""Records as the model would see them, and why some are not used."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flamingo_jax.data.examples import Example
from flamingo_jax.data.order import Order
from flamingo_jax.data.parsers import Passages
from flamingo_jax.data.records import BadRecordError, RejectedError
from flamingo_jax.data.sources import Corpus
from flamingo_jax.data.streams import Records, Stream, errors_attributed
from flamingo_jax.inspect.shards import Shard, check_shards, spread
from flamingo_jax.text.documents import Document

Fate = Literal["used", "left out", "bad"]
PER_REASON = 3  # records that are kept as examples
LeftOut = bytes | str | np.ndarray | None  # an image, also in base64, if there is one


@dataclass(frozen=True)
class Examined:
    """One record.

    Attributes:
      reason: why it is not used; "": it is.
      passages: all it holds, where it can be read.
      document, example: what becomes of it, as far as it comes.
      left_out: its images that the row does not show, where they exist, and why.
    """

    shard: str
    key: str
    fate: Fate
    reason: str = ""
    passages: Passages | None = None
    document: Document | None = None
    example: Example | None = None
    left_out: tuple[tuple[LeftOut, str], ...] = ()

    def similarity(self) -> np.ndarray:
        """Returns that of each image with its text, where it is known."""
        if self.passages is None or self.passages.similarity is None:
            return np.zeros(0)
        pairs = zip(self.passages.image_index, self.passages.similarity, strict=True)
        return np.array([score for image, score in pairs if image >= 0])


@dataclass
class StreamReport:
    """What one stream's page says.

    Attributes:
      total: records of the stream; 0: it has no files and no end.
      fates, reasons: of the records examined; a reason with the first record it was given for.
      image_reasons: why images of records are not shown.
      found, shown: images per record in the data, and per row as the model sees it.
      similarity: per record, of each image with its text.
      tokens: per row, before padding.
      documents: some that are used, in full; unused: some that are not.
    """

    name: str
    stream: Stream
    total: int = 0
    shards: list[Shard] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], tuple[int, Examined]] = field(default_factory=dict)
    image_reasons: Counter[str] = field(default_factory=Counter)
    found: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    similarity: list[np.ndarray] = field(default_factory=list)
    documents: list[Examined] = field(default_factory=list)
    unused: list[Examined] = field(default_factory=list)

    def add(self, examined: Examined, show: bool) -> None:
        self.fates[examined.fate] += 1
        if examined.passages is not None:
            self.found.append(len(examined.passages.images))
            if examined.passages.similarity is not None:
                self.similarity.append(examined.similarity())
        for _, reason in examined.left_out:
            self.image_reasons[_general(reason)] += 1
        if examined.fate != "used":
            kind = examined.fate, _general(examined.reason)
            count, first = self.reasons.get(kind, (0, examined))
            self.reasons[kind] = count + 1, first
            if count < PER_REASON:
                self.unused.append(examined)
            return
        assert examined.example is not None
        self.shown.append(marks(self.stream, examined.example))
        self.tokens.append(int((examined.example["segments"] != 0).sum()))
        if show:
            self.documents.append(examined)


def examine(
    name: str, stream: Stream, *, records: int, documents: int, shards: int
) -> StreamReport:
    """Examines up to `records` records of a stream, evenly spread; keeps `documents` in full."""
    report = StreamReport(name, stream)
    if isinstance(stream.source, Records):
        report.total = len(stream.source.order)
        report.shards = list(check_shards(stream.source.store, shards))
    every = max(1, min(records, report.total or records) // max(1, documents))
    for number, examined in enumerate(_examined(stream, records)):
        wanted = number >= every * len(report.documents) and len(report.documents) < documents
        report.add(examined, wanted)
    return report


def thresholds(report: StreamReport, levels: list[float]) -> list[tuple[float, float, float]]:
    """Returns (threshold, share of documents without any image left, share with one of those that
    have some): appendix B of the OpenFlamingo paper."""
    rows = []
    for level in levels:
        left = np.array([int((scores >= level).sum()) for scores in report.similarity])
        kept = left[left > 0]
        rows.append(
            (level, float((left == 0).mean()), float((kept == 1).mean()) if kept.size else 0.0)
        )
    return rows


def marks(stream: Stream, example: Example) -> int:
    """Images that a row shows."""
    return int((example["tokens"] == stream.make_example.tokens.special.image).sum())


def _examined(stream: Stream, records: int) -> Iterator[Examined]:
    source = stream.source
    if not isinstance(source, Records):
        for position in range(records):
            document = source.document(position, np.random.default_rng(position))
            yield _outcome(
                stream, Examined(document.shard, document.key, "used", document=document)
            )
        return
    in_order = dataclasses.replace(source, order=Order(source.store.sizes, "none"))
    for position in spread(len(in_order.order), records):
        yield _outcome(stream, _parsed(in_order, position))


def _parsed(source: Records, position: int) -> Examined:
    parser = source.parser
    assert isinstance(parser, Corpus)
    passages = None
    try:
        record = source.record(position, (0,))
        with errors_attributed(record):
            passages = parser.passages(record)
        try:
            with errors_attributed(record):
                left_out = parser.placed(passages).left_out
                document = parser.parse(record)
        except RejectedError as error:
            images = tuple((image, "") for image in passages.images)
            return Examined(
                record.shard, record.key, "left out", str(error), passages, left_out=images
            )
        except BadRecordError as error:
            return Examined(record.shard, record.key, "bad", str(error), passages)
    except BadRecordError as error:
        return Examined(error.shard, error.key, "bad", str(error))
    return Examined(record.shard, record.key, "used", "", passages, document, left_out=left_out)


def _outcome(stream: Stream, examined: Examined) -> Examined:
    """Adds the row that becomes of its document."""
    if examined.document is None:
        return examined
    rng = np.random.default_rng(0)
    try:
        example = stream.example(examined.document, rng)
    except BadRecordError as error:
        return dataclasses.replace(examined, fate="bad", reason=str(error))
    except RejectedError as error:
        return dataclasses.replace(examined, fate="left out", reason=str(error))
    behind = examined.document.images[marks(stream, example) :]
    cut = tuple((image, "behind the end of the row") for image in behind)
    return dataclasses.replace(examined, example=example, left_out=examined.left_out + cut)


def _general(reason: str) -> str:
    """Returns a reason without its numbers, so that like reasons are counted together."""
    return re.sub(r"\d+(\.\d+)?", "…", reason)
