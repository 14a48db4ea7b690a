"""Batches addressed by step: batch t is a pure function of (config, seed, t).

So the state of the data is the step alone, a resumed run reads exactly what an uninterrupted one
would have, and batches do not depend on how many threads, processes or hosts prepare them.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_jax.data.bad_records import BadRecordLog, Drawn
from flamingo_jax.data.digits import DigitDocuments, DigitPairs
from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.data.order import Order
from flamingo_jax.data.sources import Captions, Corpus, Mmc4, Pairs, Sequences
from flamingo_jax.data.stores import open_store
from flamingo_jax.data.streams import Records, Stream, StreamConfig
from flamingo_jax.data.workers import prefetched
from flamingo_jax.errors import UserError
from flamingo_jax.schema import build
from flamingo_jax.text.tokenizer import TextTokenizer

SOURCES: dict[str, type] = {
    "digits_pairs": DigitPairs,
    "digits_documents": DigitDocuments,
    "pairs": Pairs,
    "mmc4": Mmc4,
    "sequences": Sequences,
    "captions": Captions,
}
Batches = dict[str, dict[str, np.ndarray]]  # stream → images, tokens, segments, weights


@dataclass(frozen=True)
class DataConfig:
    """How data is prepared. Nothing here changes what is in the batches.

    Attributes:
      workers: processes that prepare batches; 0: a thread of the training process. About one per
        core; 8 devices at 3,200 images per second keep some 15 of them busy.
      prefetch: batches that each of them keeps ready.
      max_bad_fraction: a larger share of bad records, among those that one process has drawn since
        it started, stops the run.
      vision_cache: a directory that keeps what a frozen vision encoder makes of each image, so that
        it is encoded once; "": none. For small sets that are seen in many epochs.
      vision_cache_gib: its size; what comes after is encoded in every epoch.
    """

    workers: int = 0
    prefetch: int = 8
    max_bad_fraction: float = 0.1
    vision_cache: str = ""
    vision_cache_gib: float = 100.0

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1 or not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f"workers={self.workers}, prefetch={self.prefetch}, max_bad_fraction="
                f"{self.max_bad_fraction}: they are ≥ 0, ≥ 1 and between 0 and 1"
            )
        if self.vision_cache_gib <= 0:
            raise ValueError(f"vision_cache_gib is {self.vision_cache_gib}, it must be above 0")


@dataclass(frozen=True)
class StepSource:
    """Random access to whole batches: element t is the batch of step t.

    Attributes:
      host: which of `num_hosts` this is. It makes its part of the rows of every batch; the parts in
        the order of the hosts are the batch that one host would make.
    """

    streams: Mapping[str, Stream]
    seed: int
    num_steps: int
    host: int = 0
    num_hosts: int = 1

    def __post_init__(self) -> None:
        for name, stream in self.streams.items():
            if stream.config.batch_size % self.num_hosts:
                raise UserError(
                    f"config.streams.{name}.batch_size is {stream.config.batch_size}, which does "
                    f"not divide by {self.num_hosts} hosts"
                )

    @property
    def reads_files(self) -> bool:
        return any(isinstance(stream.source, Records) for stream in self.streams.values())

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batches:
        return self.read(step)[0]

    def read(self, step: int) -> tuple[Batches, Drawn]:
        """Makes the batches of a step, and tells what was drawn for them."""
        batches: Batches = {}
        drawn = Drawn()
        for index, (name, stream) in enumerate(sorted(self.streams.items())):
            size = stream.config.batch_size // self.num_hosts
            rows = range(self.host * size, (self.host + 1) * size)
            try:
                batches[name] = stream.batch(step, (self.seed, index), rows, drawn)
            except ValueError as error:
                raise UserError(f"stream {name!r}, step {step}: {error}") from error
        return batches, drawn


@dataclass(frozen=True)
class _Reader:
    """What a worker sends: a step's batches with, as one leaf, what was drawn for them."""

    source: StepSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, step: int) -> tuple[Batches, str]:
        batches, drawn = self.source.read(step)
        return batches, drawn.to_json()


def make_streams(
    configs: Mapping[str, StreamConfig], tokens: TextTokenizer, image_size: int
) -> dict[str, Stream]:
    """Raises UserError for options that the source does not have, and files that it cannot read."""
    streams = {}
    for name, config in configs.items():
        path = f"config.streams.{name}.options"
        source: Any = build(SOURCES[config.source], config.options, path)
        if isinstance(source, Corpus):
            store = open_store(source.shards, source.index_dir)
            order = Order(store.sizes, config.shuffle, config.window_shards)
            source = Records(store, order, source)
        maker = ExampleMaker(
            tokens, config.text_length, config.num_images, image_size, config.decode
        )
        streams[name] = Stream(config, source, maker, name)
    return streams


def batches(
    source: StepSource,
    start: int,
    *,
    workers: int = 0,
    prefetch: int = 8,
    log: BadRecordLog | None = None,
) -> Generator[Batches, None, None]:
    """Batches of steps `start`, start + 1, …, prepared ahead; see `DataConfig`.

    Raises:
      UserError: a stream cannot be read, or too many records are bad, see `BadRecordLog.add`.
    """
    reader = prefetched(_Reader(source), start, workers=workers, prefetch=prefetch)
    with closing(reader):
        for step_batches, drawn in reader:
            if log is not None:
                log.add(Drawn.from_json(drawn))
            yield step_batches
