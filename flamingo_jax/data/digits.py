"""Embedded real data: scans of handwritten digits, as pairs and as interleaved documents.

scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits": 1,797 scans of 8×8
pixels, values 0–16, shipped inside the package, so that nothing is fetched.

The interleaved documents test fast binding (Frozen, arXiv 2106.13884): names that mean nothing are
bound to classes inside one document, so that only the context tells which is which.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from flamingo_jax.text.digit_words import NAMES, NUM_POSES, caption
from flamingo_jax.text.documents import Document, captioned, interleaved

# The file lists scans writer by writer, so blocks of it are (nearly) blocks of writers. Choices are
# made on "validation"; "held_out" is for the figures that are reported.
BLOCKS = {"train": slice(0, 1200), "validation": slice(1200, 1400), "held_out": slice(1400, 1797)}
Split = Literal["train", "validation", "held_out"]


@lru_cache(maxsize=1)
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=-1), digits.target


def scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Scans (n, 8, 8, 3) uint8 and their digits (n,) int."""
    pixels, targets = _scans()
    return pixels[BLOCKS[split]], targets[BLOCKS[split]]


@lru_cache(maxsize=3)
def scans_by_digit(split: Split) -> tuple[np.ndarray, ...]:
    """Indices into `scans(split)` of each digit."""
    targets = scans(split)[1]
    return tuple(np.flatnonzero(targets == digit) for digit in range(10))


def posed(scan: np.ndarray, pose: int) -> np.ndarray:
    """Returns one of 16 views of a scan (8, 8, 3): turned, mirrored, inverted; 0 is the scan."""
    turns, mirrored, inverted = pose % 4, pose // 4 % 2, pose // 8
    view = np.rot90(scan, turns)
    view = view[:, ::-1] if mirrored else view
    return np.ascontiguousarray(255 - view if inverted else view)


def augmented(scan: np.ndarray, pose: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the posed scan, moved by up to a pixel each way: a digit has only 120 scans."""
    padded = np.zeros((10, 10, 3), np.uint8)
    padded[1:9, 1:9] = scan
    row, column = rng.integers(3, size=2)
    return posed(padded[row : row + 8, column : column + 8], pose)


@dataclass(frozen=True, kw_only=True)
class DigitPairs:
    """Image–caption pairs: a scan and what it shows; half of them stand upright."""

    def document(self, position: int, rng: np.random.Generator) -> Document:
        pixels, targets = scans("train")
        index = int(rng.integers(len(pixels)))
        pose = int(rng.integers(NUM_POSES)) if rng.random() < 0.5 else 0
        image = augmented(pixels[index], pose, rng)
        key = f"digits/pair/{position}/{index}"
        return captioned(key, (image, caption(int(targets[index]), pose)))


@dataclass(frozen=True, kw_only=True)
class DigitDocuments:
    """Interleaved documents of several scans.

    A share of them binds new names to `ways` classes, drawn anew for each document; the others
    caption each scan with its digit.

    Attributes:
      binding_share: share of documents that bind names.
      upright_share: share of binding documents whose classes are upright digits; in the others
        a class is a digit in one of 16 poses, which makes 160 of them.
      num_images: images per document.
      ways: classes per binding document.
      copies_until: a curriculum: up to this document, a class is shown by copies of one scan with
        a probability that falls linearly to 0; then always by different scans.
    """

    binding_share: float = 0.75
    upright_share: float = 0.5
    num_images: int = 12
    ways: int = 2
    copies_until: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.ways <= 10:
            raise ValueError(f"ways is {self.ways}, it must be between 1 and 10")

    def document(self, position: int, rng: np.random.Generator) -> Document:
        if rng.random() < self.binding_share:
            return self._binding(position, rng)
        pixels, targets = scans("train")
        chosen = rng.integers(len(pixels), size=self.num_images)
        parts: list = []
        for index in chosen:
            parts += [augmented(pixels[index], 0, rng), caption(int(targets[index]))]
        return interleaved(f"digits/naming/{position}", parts)

    def _binding(self, position: int, rng: np.random.Generator) -> Document:
        pixels, _ = scans("train")
        by_digit = scans_by_digit("train")
        num_classes = 10 if rng.random() < self.upright_share else 10 * NUM_POSES
        classes = rng.choice(num_classes, size=self.ways, replace=False)
        names = rng.choice(len(NAMES), size=self.ways, replace=False)
        copies = self.copies_until and rng.random() > position / self.copies_until
        pools = [by_digit[c % 10] for c in classes]
        if copies:
            pools = [rng.choice(pool, size=1) for pool in pools]
        parts: list = []
        for which in rng.integers(self.ways, size=self.num_images):
            pose = int(classes[which]) // 10
            scan = pixels[rng.choice(pools[which])]
            parts += [augmented(scan, pose, rng), NAMES[names[which]]]
        return interleaved(f"digits/binding/{position}", parts)


def binding_question(
    shots: int, rng: np.random.Generator, split: Split = "held_out"
) -> tuple[list[tuple[int, str]], int, tuple[str, str]]:
    """Draws a two-way binding question over scans of a split.

    `shots` scans of each of two digits with their names, in random order; one more scan of one of
    them, whose name is to be told; its (right, wrong) names. Scans are indices into `scans(split)`.
    None appears twice; all stand upright.
    """
    by_digit = scans_by_digit(split)
    digits = rng.choice(10, size=2, replace=False)
    names = [NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False)]
    drawn = [rng.choice(by_digit[d], size=shots + 1, replace=False).tolist() for d in digits]
    shown = [(scan, name) for name, seen in zip(names, drawn, strict=True) for scan in seen[:shots]]
    asked = int(rng.integers(2))
    order = rng.permutation(len(shown))
    return [shown[i] for i in order], drawn[asked][shots], (names[asked], names[1 - asked])
