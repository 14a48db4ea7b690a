"""The tokens that the model gives a meaning, and the rows that they add to a language model's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flamingo_jax.errors import UserError

END_OF_CHUNK = "<|endofchunk|>"
IMAGE = "<image>"
PAD = "<PAD>"
# Embedding tables are padded to a round number of rows; a gap larger than this is another model's
# tokenizer.
MOST_UNUSED_ROWS = 1024


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the model gives a meaning, and the length of the vocabulary that ends with them."""

    end_of_chunk: int
    image: int
    pad: int
    vocabulary: int

    def __post_init__(self) -> None:
        ids = (self.end_of_chunk, self.image, self.pad, self.vocabulary)
        rest = self.vocabulary - self.end_of_chunk - 2
        pad_fits = self.pad == self.vocabulary - 1 if rest == 1 else self.pad < self.end_of_chunk
        if self.image != self.end_of_chunk + 1 or rest not in (0, 1) or not pad_fits:
            raise UserError(
                f"{END_OF_CHUNK}, {IMAGE}, the pad token and the vocabulary's length are {ids}: "
                f"{END_OF_CHUNK} and {IMAGE} must follow the language model's own tokens, at most "
                "the pad token after them; give the tokenizer as it was before it was grown"
            )


def check_fit(special: SpecialTokens, rows: int, folder: Path) -> None:
    """Raises UserError for a tokenizer made for another vocabulary than one of `rows` rows."""
    own = special.end_of_chunk
    if not rows - MOST_UNUSED_ROWS < own <= rows:
        raise UserError(
            f"the tokenizer in {folder} has {own} tokens but the language model has {rows} "
            "token rows: give the tokenizer that belongs to the language model"
        )


def resize_rows(table: np.ndarray, rows: int) -> np.ndarray:
    """Returns the first `rows` rows; those beyond the table come from N(0, 0.02²), always the same.

    A padded table is cut, so that new tokens take over rows that no token of the tokenizer used:
    they are pretrained, if idle.
    """
    if rows <= len(table):
        return table[:rows]
    fresh = np.random.default_rng(0).normal(0, 0.02, (rows - len(table), *table.shape[1:]))
    return np.concatenate([table, fresh.astype(table.dtype)])
