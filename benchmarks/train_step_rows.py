"""What a step of `benchmarks.train_step` is given: the run, and its rows for either side."""

import dataclasses
from typing import Literal

import numpy as np

from benchmarks.models import model_config
from flamingo_jax.data.examples import Example
from flamingo_jax.data.packing import Packing, pack
from flamingo_jax.data.streams import StreamConfig
from flamingo_jax.parallel.remat import RematPolicy
from flamingo_jax.train.config import TrainConfig

Data = Literal["full", "published"]

# Tokens and images of a document. The published ones are the medians of OpenFlamingo's own training
# data (arXiv 2308.01390, table 2); the original pads them to the full ones.
SIZES: dict[Data, dict[str, tuple[int, int]]] = {
    "full": {"pairs": (32, 1), "interleaved": (256, 6)},
    "published": {"pairs": (17, 1), "interleaved": (256, 2)},
}
# One batch in a row. There is room for more than documents of these sizes need: an eighth of the
# images, and a sixth of the pairs' text.
PACKED = {
    "pairs": Packing(documents=8, text_length=160, parts=2),
    "interleaved": Packing(documents=4, text_length=4 * 256, images=9, parts=4),
}


def run_config(size: str, layers: int, rows: int, remat: RematPolicy, data: Data) -> TrainConfig:
    """A run whose step is measured: 8 pairs and 4 documents, `rows` times as many; packed, where
    they do not fill their rows."""
    model = dataclasses.replace(model_config(size, layers), remat=remat)
    if size == "small":  # all logits of its interleaved rows are 32 MiB
        model = dataclasses.replace(model, max_logits_mib=16)
    pairs, interleaved = SIZES["full"]["pairs"], SIZES["full"]["interleaved"]
    streams = {
        "pairs": StreamConfig(
            source="pairs", batch_size=8, text_length=pairs[0], num_images=pairs[1], weight=0.2
        ),
        "interleaved": StreamConfig(
            source="mmc4", batch_size=4, text_length=interleaved[0], num_images=interleaved[1]
        ),
    }
    for name, stream in streams.items():
        if data == "full":
            changes = {"batch_size": rows * stream.batch_size}
        else:
            changes = {"batch_size": rows, "pack": PACKED[name]}
        streams[name] = dataclasses.replace(stream, **changes)
    return TrainConfig(
        model=model, tokenizer="", frozen_dtype=model.dtype, streams=streams, num_steps=1000
    )


def make_batch(
    config: TrainConfig, data: Data, *, packed: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Random documents of every stream, each in a row of its own as the original pads it, or packed
    as the config says. Images are normalised floats (B, T, 1, H, W, 3)."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, stream in config.streams.items():
        count = stream.batch_size * stream.documents_per_row
        rows = [_example(config, stream, SIZES[data][name], rng) for _ in range(count)]
        if packed and stream.pack:
            starts = range(0, count, stream.pack.documents)
            rows = [
                pack(rows[i : i + stream.pack.documents], stream.pack, config.model.image_token)
                for i in starts
            ]
        batch[name] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return batch


def _example(
    config: TrainConfig, stream: StreamConfig, size: tuple[int, int], rng: np.random.Generator
) -> Example:
    """One document, its images spread evenly over the text, with padding after it."""
    (length, images), model, pixels = size, config.model, config.model.encoder.image_size
    places = np.arange(stream.text_length)
    tokens = rng.integers(0, model.decoder.vocab_size, stream.text_length)
    tokens[: images * (length // images) : length // images] = model.image_token
    tokens[length:] = 0
    media = rng.normal(size=(stream.num_images, 1, pixels, pixels, 3))
    media[images:] = 0
    return {
        "images": media.astype(np.float32),
        "tokens": tokens.astype(np.int32),
        "segments": (places < length).astype(np.int32),
        "weights": ((places < length) & (tokens != model.image_token)).astype(np.float32),
    }
