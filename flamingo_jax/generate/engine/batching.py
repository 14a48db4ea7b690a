"""Ragged prompts as arrays of a few shapes."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flamingo_jax.models.params import ModelGraph
from flamingo_jax.models.vlm import ModelConfig, Pictures
from flamingo_jax.text.documents import check_image_count


@dataclass(frozen=True)
class PaddedPrompts:
    """A batch of prompts in its bucket: text padded on the left, images and rows at the end."""

    images: np.ndarray
    tokens_BS: Int[np.ndarray, "B S"]
    segments_BS: Int[np.ndarray, "B S"]
    num_images_B: Int[np.ndarray, "B"]
    active_B: Bool[np.ndarray, "B"]  # False: a row that only fills the bucket
    num_rows: int
    given_length: int  # of the text before it was padded to the bucket

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.images, self.tokens_BS, self.segments_BS, self.num_images_B

    def has_spare_images(self, image_token: int) -> bool:
        """Returns whether there are images for an `<image>` that comes later."""
        is_mark_BS = (self.tokens_BS == image_token) & (self.segments_BS != 0)
        return bool((is_mark_BS.sum(axis=1) < self.num_images_B).any())


@functools.cache
def model_config(graph: ModelGraph) -> ModelConfig:
    return graph.merge(graph.shapes()).config


def bucket(size: int, smallest: int = 1) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, …: at most a third is padding."""
    power = 1 << max(size - 1, 0).bit_length()
    three_quarters = 3 * power // 4
    return max(smallest, three_quarters if 4 * size <= 3 * power else power) if size else 0


def pad_prompts(
    config: ModelConfig,
    images: Pictures,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None,
    num_images_B: Int[np.ndarray, "B"] | None,
    *,
    room: int,
) -> PaddedPrompts:
    """The batch in its bucket. `room`: tokens that are to follow.

    Raises:
      ValueError: see `generate`.
    """
    host_images, tokens = np.asarray(images), np.asarray(tokens_BL, np.int32)
    segments = np.ones_like(tokens) if segments_BL is None else np.asarray(segments_BL, np.int32)
    num_rows, num_slots = host_images.shape[:2]
    counts = np.broadcast_to(num_slots if num_images_B is None else num_images_B, (num_rows,))
    if tokens.shape != segments.shape or len(tokens) != num_rows:
        raise ValueError(
            f"tokens are {tokens.shape}, segments {segments.shape} and images "
            f"{host_images.shape}: give one row of each for every prompt, padded to one length"
        )
    if counts.max(initial=0) > num_slots:
        raise ValueError(f"num_images has {counts.max()}, there are images for {num_slots}")
    for row in np.flatnonzero((segments[:, -1:] == 0).any(axis=1)) if tokens.shape[1] else [0]:
        raise ValueError(
            f"row {row} ends with padding: pad prompts on the left, and give each a token"
        )
    lenient = config.fusion.uniform_beyond_images
    if not lenient:
        check_image_count(np.where(segments != 0, tokens, -1), config.image_token, counts)
    config.decoder.check_length(int((segments == segments[:, -1:]).sum(axis=1).max()) + room)

    rows, length = bucket(num_rows), bucket(tokens.shape[1], 16)
    # Attention to all images alike would see the padding.
    slots = num_slots if lenient else bucket(num_slots)
    left = ((0, rows - num_rows), (length - tokens.shape[1], 0))
    segments_BS = _pad(segments, *left)
    segments_BS[num_rows:, -1] = 1
    return PaddedPrompts(
        _pad(host_images, left[0], (0, slots - num_slots)),
        _pad(tokens, *left),
        segments_BS,
        _pad(counts.astype(np.int32), left[0]),
        np.arange(rows) < num_rows,
        num_rows,
        tokens.shape[1],
    )


def _pad(x: np.ndarray, *amounts: tuple[int, int]) -> np.ndarray:
    """Zeros around the first axes."""
    rest: Any = [(0, 0)] * (x.ndim - len(amounts))
    return np.pad(x, [*amounts, *rest])
