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
      text_length: tokens per row. A document that the end of its part cuts loses its end; choose
        `documents` such that few are.
      images: places for images per row; None: as many as its documents may have. Each place is
        encoded, also an empty one. A document is cut before the image that is one too many.
      parts: of equal length, each with as many of the documents. No document reaches into another
        part, so attention is computed in each alone: long rows, in which documents share places for
        images, cost no more attention than short ones.
    """

    documents: int
    text_length: int
    images: int | None = None
    parts: int = 1

    def __post_init__(self) -> None:
        for name in ("documents", "text_length", "images", "parts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        for name in ("documents", "text_length"):
            if getattr(self, name) % self.parts:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which parts {self.parts} does not divide"
                )

    @property
    def part_length(self) -> int:
        return self.text_length // self.parts


def pack(examples: Sequence[Example], packing: Packing, image_token: int) -> Example:
    """Makes one row of examples, kept apart by `segments`: 1, 2, … for them, 0 for padding.

    The images that the row refers to stand in the order of their marks, as the model counts them.
    The first token of an example is predicted from nothing when it stands alone, so its weight is
    0 here; what stands after the end of its part is cut.

    Args:
      examples: of T images each, `packing.documents` or fewer.
      packing: the row's shape.
      image_token: id of `<image>`.

    Returns:
      images: uint8 (N, 1, H, W, 3) with N = `packing.images` or documents · T; tokens, segments:
      int32 (L,); weights: float32 (L,)
    """
    length, per_part = packing.text_length, packing.documents // packing.parts
    images = np.zeros_like(examples[0]["images"], shape=_images_shape(examples[0], packing))
    tokens, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    weights = np.zeros(length, np.float32)
    used = seen = 0
    for segment, example in enumerate(examples, 1):
        part = (segment - 1) // per_part
        used = max(used, part * packing.part_length)
        room = (part + 1) * packing.part_length - used
        size = min(int((example["segments"] != 0).sum()), room)
        marks = np.flatnonzero(example["tokens"][:size] == image_token)
        if len(marks) > len(images) - seen:
            size = int(marks[len(images) - seen])
        if not example["weights"][1:size].any():  # nothing of it would be learned
            continue
        row = slice(used, used + size)
        tokens[row] = example["tokens"][:size]
        segments[row] = segment
        weights[row] = example["weights"][:size]
        weights[used] = 0.0
        count = min(len(marks), len(images) - seen)
        images[seen : seen + count] = example["images"][:count]
        used, seen = used + size, seen + count
    return {"images": images, "tokens": tokens, "segments": segments, "weights": weights}


def _images_shape(example: Example, packing: Packing) -> tuple[int, ...]:
    num_images, *shape = example["images"].shape
    return packing.images or packing.documents * num_images, *shape
