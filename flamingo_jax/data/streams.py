"""One stream: a source, the shape of its examples, and how bad records are replaced."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from flamingo_jax.data.bad_records import BadEntry, Drawn
from flamingo_jax.data.examples import Example, ExampleMaker
from flamingo_jax.data.images import Decode
from flamingo_jax.data.order import Key, Order, Shuffle
from flamingo_jax.data.packing import Packing, pack
from flamingo_jax.data.records import BadRecordError, Record, RejectedError
from flamingo_jax.data.stores import Store
from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import Document, check_image_count

MAX_ATTEMPTS = 100  # records drawn for one place


class Source(Protocol):
    """Where documents come from. Frozen dataclasses, so that their fields are config keys."""

    def document(self, position: int, rng: np.random.Generator) -> Document:
        """Returns document number `position` of the stream: a function of its arguments alone."""
        ...


class Parser(Protocol):
    """How the records of a corpus are read."""

    def parse(self, record: Record) -> Document:
        """Makes a document. BadRecordError: it is damaged. RejectedError: a setting excludes it."""
        ...


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream of examples; every step takes one batch of each stream.

    Attributes:
      source: a name in `pipeline.SOURCES`; `options` are its fields.
      batch_size: rows per step, on all devices, hosts and in all micro-batches together.
      loss: a name in `train.losses.LOSSES`.
      weight: of this stream's mean loss.
      text_length: tokens per document; a longer one is cut.
      num_images: images per document.
      pack: several documents in one row; None: one.
      shuffle: see `order.Order`. "window" reads from few files at a time; "global" mixes best.
      window_shards: files per window.
      decode: see `images.decode_image`.
      min_images: documents with fewer `<image>` tokens, after the cut, are left out.
      single_image_share: of documents with one image, this share is kept; OpenFlamingo's is 0.5.
    """

    source: Literal["digits_pairs", "digits_documents", "pairs", "mmc4", "sequences", "captions"]
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int
    loss: Literal["next_token"] = "next_token"
    weight: float = 1.0
    text_length: int
    num_images: int
    pack: Packing | None = None
    shuffle: Shuffle = "global"
    window_shards: int = 64
    decode: Decode = "exact"
    min_images: int = 0
    single_image_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "text_length", "num_images", "window_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not 0 <= self.single_image_share <= 1:
            raise ValueError(f"single_image_share is {self.single_image_share}, not in [0, 1]")

    @property
    def documents_per_row(self) -> int:
        return self.pack.documents if self.pack else 1

    @property
    def row_length(self) -> int:
        """Tokens per row."""
        return self.pack.text_length if self.pack else self.text_length

    @property
    def row_images(self) -> int:
        """Places for images per row."""
        return (self.pack and self.pack.images) or self.documents_per_row * self.num_images

    @property
    def row_parts(self) -> int:
        """Parts of a row that no document reaches across."""
        return self.pack.parts if self.pack else 1

    @property
    def part_length(self) -> int:
        """Tokens per part of a row."""
        return self.row_length // self.row_parts


@dataclass(frozen=True)
class Records:
    """The records of a corpus, read in an order."""

    store: Store
    order: Order
    parser: Parser

    def record(self, position: int, key: Key) -> Record:
        """Reads a record. BadRecordError: it cannot be read."""
        shard, index = self.order.place(position, key)
        try:
            record = self.store.record(shard, index)
        except BadRecordError as error:
            raise error.at(self.store.paths[shard], f"record {index}") from None
        return dataclasses.replace(record, epoch=position // len(self.order))

    def document(self, position: int, key: Key) -> Document:
        """Returns a document. BadRecordError, RejectedError: see `Parser`."""
        record = self.record(position, key)
        with errors_attributed(record):
            return self.parser.parse(record)


@contextmanager
def errors_attributed(record: Record) -> Iterator[None]:
    """Turns what a parser raises on a record's content into a BadRecordError that names it."""
    try:
        yield
    except BadRecordError as error:
        raise error.at(record.shard, record.key) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # JSON of other people: anything may stand where a string or a number is expected.
        reason = f"unexpected content: {type(error).__name__}: {error}"
        raise BadRecordError(reason).at(record.shard, record.key) from error


@dataclass(frozen=True)
class Stream:
    """A source with the shape of its examples; gives rows of batches."""

    config: StreamConfig
    source: Source | Records
    make_example: ExampleMaker
    name: str = ""

    def batch(
        self, step: int, key: Key, rows: range | None = None, drawn: Drawn | None = None
    ) -> dict[str, np.ndarray]:
        """Rows of one step (default: all), stacked; what is drawn for them is added to `drawn`.

        Raises:
          ValueError: text refers to an image that is not there.
          UserError: no record could be used in `MAX_ATTEMPTS` attempts.
        """
        rows = range(self.config.batch_size) if rows is None else rows
        drawn = Drawn() if drawn is None else drawn
        per_row = self.config.documents_per_row
        first = (step * self.config.batch_size + rows.start) * per_row
        documents, examples = [], []
        for position in range(first, first + len(rows) * per_row):
            document, example = self._draw(position, step, key, drawn)
            documents.append(document)
            examples.append(example)
        image_token = self.make_example.tokens.special.image
        check_image_count(
            np.stack([example["tokens"] for example in examples]),
            image_token,
            np.array([len(document.images) for document in documents]),
        )
        if self.config.pack:
            examples = [
                pack(examples[i : i + per_row], self.config.pack, image_token)
                for i in range(0, len(examples), per_row)
            ]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}

    def _draw(self, position: int, step: int, key: Key, drawn: Drawn) -> tuple[Document, Example]:
        """Draws the document of a position, or the first usable one of those drawn instead."""
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng((*key, position, attempt) if attempt else (*key, position))
            drawn.records += 1
            try:
                document = self._document(position, attempt, key, rng)
                try:
                    return document, self.example(document, rng)
                except BadRecordError as error:
                    raise error.at(document.shard, document.key) from None
            except RejectedError as error:
                drawn.rejected += 1
                reason = str(error)
            except BadRecordError as error:
                reason = str(error)
                drawn.bad.append(
                    BadEntry(step, self.name, position, error.shard, error.key, reason)
                )
        raise UserError(
            f"stream {self.name!r}, step {step}: none of {MAX_ATTEMPTS} records drawn could be "
            f"used; the last: {reason}. Check the stream's source, options and limits"
        )

    def _document(
        self, position: int, attempt: int, key: Key, rng: np.random.Generator
    ) -> Document:
        if not isinstance(self.source, Records):
            return self.source.document(position, rng)
        if attempt:
            position = self.source.order.redraw(position, rng)
        return self.source.document(position, key)

    def example(self, document: Document, rng: np.random.Generator) -> Example:
        """Makes the document's row. RejectedError: too few images in it, or nothing to learn."""
        example = self.make_example(document)
        marks = int((example["tokens"] == self.make_example.tokens.special.image).sum())
        if marks < self.config.min_images:
            raise RejectedError(f"{marks} images after the cut, fewer than min_images")
        if marks == 1 and rng.random() >= self.config.single_image_share:
            raise RejectedError("one image only, by single_image_share")
        if not example["weights"][1:].any():
            raise RejectedError("no token of the row is to be learned")
        return example
