"""The one type that every corpus is parsed into: text and images in reading order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# uint8 (H, W, 3), or (F, H, W, 3) for a video; or the bytes of an image file, decoded when it is
# certain that they are needed.
Image = np.ndarray | bytes

END_OF_CHUNK = "<|endofchunk|>"
IMAGE = "<image>"


@dataclass(frozen=True)
class Document:
    """A document as an interleaved sequence.

    Attributes:
      key: which one it is, for logs and errors.
      parts: text and images in reading order.
      kind: which label mask it gets, see `examples.loss_weights`.
      shard: the file it comes from, if any.
    """

    key: str
    parts: tuple[str | Image, ...]
    kind: Literal["pair", "interleaved"]
    shard: str = ""

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if not isinstance(part, str))


def render(document: Document) -> str:
    """The text the language model reads: `<image>` for each image, and `<|endofchunk|>` before
    every image but the first."""
    pieces: list[str] = []
    seen_image = False
    for part in document.parts:
        if isinstance(part, str):
            pieces.append(part)
        else:
            pieces.append(END_OF_CHUNK + IMAGE if seen_image else IMAGE)
            seen_image = True
    return "".join(pieces)


def check_image_count(
    tokens_BL: np.ndarray, image_token: int, num_images: int | np.ndarray
) -> None:
    """ValueError naming the first row with more `<image>` tokens than images (an int, or (B,)).

    Without it such text would see no image at all; the original attends uniformly to every image.
    """
    counts_B = (tokens_BL == image_token).sum(axis=1)
    limits_B = np.broadcast_to(num_images, counts_B.shape)
    for row in np.flatnonzero(counts_B > limits_B):
        raise ValueError(
            f"row {row} has {counts_B[row]} <image> tokens but {limits_B[row]} images: "
            "give every <image> its picture, or remove the mark from the text"
        )
