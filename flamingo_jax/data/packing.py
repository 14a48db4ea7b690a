"""Several short documents in one row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_jax.data.examples import Example


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Rows of several documents.

    Attributes:
      documents: per row.
      text_length: tokens per row. A document that the end of the row cuts loses its end; choose
        `documents` such that few are.
    """

    documents: int
    text_length: int

    def __post_init__(self) -> None:
        for name in ("documents", "text_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")


def pack(examples: Sequence[Example], packing: Packing, image_token: int) -> Example:
    """One row from examples, kept apart by `segments`: 1, 2, … for the examples, 0 for padding.

    The images that the row refers to stand in the order of their marks, as the model counts them.
    The first token of an example is predicted from nothing when it stands alone, so its weight is
    0 here; what stands after the end of the row is cut.

    Returns:
      images: uint8 (documents · T, 1, H, W, 3); tokens, segments: int32 (L,); weights: float32 (L,)
    """
    length = packing.text_length
    images = np.zeros_like(examples[0]["images"], shape=_images_shape(examples[0], packing))
    tokens, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    weights = np.zeros(length, np.float32)
    used = seen = 0
    for segment, example in enumerate(examples, 1):
        size = min(int((example["segments"] != 0).sum()), length - used)
        if not example["weights"][1:size].any():  # nothing of it would be learned
            continue
        row = slice(used, used + size)
        tokens[row] = example["tokens"][:size]
        segments[row] = segment
        weights[row] = example["weights"][:size]
        weights[used] = 0.0
        count = int((example["tokens"][:size] == image_token).sum())
        images[seen : seen + count] = example["images"][:count]
        used, seen = used + size, seen + count
    return {"images": images, "tokens": tokens, "segments": segments, "weights": weights}


def _images_shape(example: Example, packing: Packing) -> tuple[int, ...]:
    num_images, *shape = example["images"].shape
    return packing.documents * num_images, *shape
