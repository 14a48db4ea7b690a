"""Batches addressed by step: batch t is a pure function of (config, seed, t).

So the state of the data is the step alone, a resumed run reads exactly what an uninterrupted one
would have, and batches do not depend on how many threads prepare them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import grain
import numpy as np

from flamingo_jax.data.digits import DigitDocuments, DigitPairs
from flamingo_jax.data.documents import Document
from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.data.tokenizer import TextTokens
from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import check_image_count
from flamingo_jax.schema import build

SOURCES = {"digits_pairs": DigitPairs, "digits_documents": DigitDocuments}


class Source(Protocol):
    """Where documents come from. Frozen dataclasses, so that their fields are config keys."""

    def document(self, position: int, rng: np.random.Generator) -> Document:
        """The stream's document number `position`: a function of its arguments alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream of examples; every step takes one batch of each stream."""

    source: Literal["digits_pairs", "digits_documents"]
    options: dict[str, Any] = field(default_factory=dict)  # fields of the source
    batch_size: int  # rows per step, on all devices and in all micro-batches together
    weight: float = 1.0  # of this stream's mean loss
    text_length: int
    num_images: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "text_length", "num_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")


@dataclass(frozen=True)
class Stream:
    """A source with the shape of its examples; gives batches by step."""

    config: StreamConfig
    source: Source
    make_example: ExampleMaker

    def batch(self, step: int, key: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Rows of one step, stacked. ValueError: text refers to an image that is not there."""
        examples = []
        image_counts = []
        for row in range(self.config.batch_size):
            position = step * self.config.batch_size + row
            rng = np.random.default_rng((*key, position))
            document = self.source.document(position, rng)
            examples.append(self.make_example(document))
            image_counts.append(len(document.images))
        batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
        image_token = self.make_example.tokens.image
        check_image_count(batch["tokens"], image_token, np.array(image_counts))
        return batch


@dataclass(frozen=True)
class StepSource:
    """Random access to whole batches, as Grain wants it: element t is the batch of step t."""

    streams: Mapping[str, Stream]
    seed: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        batches = {}
        for index, (name, stream) in enumerate(sorted(self.streams.items())):
            try:
                batches[name] = stream.batch(step, (self.seed, index))
            except ValueError as error:
                raise UserError(f"stream {name!r}, step {step}: {error}") from error
        return batches


def make_streams(
    configs: Mapping[str, StreamConfig], tokens: TextTokens, image_size: int
) -> dict[str, Stream]:
    """Raises UserError for options that the source does not have."""
    return {
        name: Stream(
            config,
            build(SOURCES[config.source], config.options, f"config.streams.{name}.options"),
            ExampleMaker(tokens, config.text_length, config.num_images, image_size),
        )
        for name, config in configs.items()
    }


def batches(
    source: StepSource, start: int, *, prefetch: int = 8
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """Batches of steps `start`, start + 1, …, prepared ahead by one thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source)[start:].to_iter_dataset(options))
