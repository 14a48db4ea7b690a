"""The one type that every corpus is parsed into: text and images in reading order."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# uint8 (H, W, 3), or (F, H, W, 3) for a video; or the bytes of an image file, decoded when it is
# certain that they are needed.
Image = np.ndarray | bytes


@dataclass(frozen=True)
class Text:
    """A stretch of text, and whether the model learns to predict it or only reads it."""

    text: str
    learn: bool = True


@dataclass(frozen=True)
class Document:
    """A document as an interleaved sequence.

    Attributes:
      key: which one it is, for logs and errors.
      parts: text and images in reading order.
      learn_ends: whether the end-of-text token is learnt, and the begin token of tokenizers that
        add one.
      shard: the file it comes from, if any.
    """

    key: str
    parts: tuple[Text | Image, ...]
    learn_ends: bool = False
    shard: str = ""

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if not isinstance(part, Text))


def captioned(key: str, parts: Iterable[str | Image], shard: str = "") -> Document:
    """Makes a document all of whose text is learnt, as OpenFlamingo learns image–text pairs."""
    marked = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return Document(key, marked, learn_ends=True, shard=shard)


def interleaved(key: str, parts: Iterable[str | Image], shard: str = "") -> Document:
    """Makes a document whose text is learnt from its first image on, as OpenFlamingo learns MMC4:
    what stands before belongs to no image."""
    marked: list[Text | Image] = []
    seen_image = False
    for part in parts:
        seen_image |= not isinstance(part, str)
        marked.append(Text(part, learn=seen_image) if isinstance(part, str) else part)
    return Document(key, tuple(marked), shard=shard)


def check_image_count(
    tokens_BL: np.ndarray, image_token: int, num_images: int | np.ndarray
) -> None:
    """Raises ValueError for the first row with more `<image>` tokens than images (int or (B,)).

    Without it such text would see no image at all; the original attends uniformly to every image.
    """
    counts_B = (tokens_BL == image_token).sum(axis=1)
    limits_B = np.broadcast_to(num_images, counts_B.shape)
    for row in np.flatnonzero(counts_B > limits_B):
        raise ValueError(
            f"row {row} has {counts_B[row]} <image> tokens but {limits_B[row]} images: "
            "give every <image> its picture, or remove the mark from the text"
        )
