"""The digits demo as tasks: naming held-out scans, and binding made-up names to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flamingo_jax.data import digits
from flamingo_jax.evaluate.tasks.task import DataErrors, Example, Split, Task
from flamingo_jax.text import digit_words


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """Which digit does a scan show? Needs no files."""

    folder: str = "digits"
    split: digits.Split = "held_out"

    metric = "accuracy"
    separator = ""
    text_only = 0

    def files(self, split: Split) -> tuple[str, ...]:
        return ()

    def choices(self, data: Path) -> tuple[str, ...]:
        return digit_words.WORDS

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        part = "train" if split == "train" else self.split
        for index, digit in enumerate(digits.scans(part)[1]):
            word = digit_words.WORDS[digit]
            yield Example(str(index), f"{part}/{index}", f"{digit_words.PROMPT} ", word, (word,))

    def picture(self, data: Path, image: str) -> np.ndarray:
        part, index = image.split("/")
        scans: np.ndarray = digits.scans(part)[0]  # type: ignore[arg-type]
        return scans[int(index)]


@dataclass(frozen=True, kw_only=True)
class DigitNames(Digits):
    """Which of two names, made up for this prompt alone, goes with the last scan?

    A shot is one scan of each of the two digits.
    """

    num_prompts: int = 2000

    def choices(self, data: Path) -> tuple[str, ...]:
        return digit_words.NAMES

    def read(self, data: Path, split: Split, problems: DataErrors) -> Iterator[Example]:
        return iter(())

    def own_prompts(
        self, shots: int, seed: int
    ) -> list[tuple[Example, tuple[Example, ...]]] | None:
        prompts = []
        for index in range(self.num_prompts):
            rng = np.random.default_rng((seed, shots, index))
            shown, asked, names = digits.binding_question(shots, rng, self.split)
            example = Example(
                str(index),
                f"{self.split}/{asked}",
                "",
                references=names[:1],
                # In the order of the vocabulary, so that the right one's place tells nothing.
                choices=tuple(sorted(names, key=digit_words.NAMES.index)),
            )
            demonstrations = tuple(
                Example(str(scan), f"{self.split}/{scan}", "", name) for scan, name in shown
            )
            prompts.append((example, demonstrations))
        return prompts
