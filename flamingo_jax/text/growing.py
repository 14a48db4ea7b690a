"""Growing a language model's tokenizer, and its token rows with it, as OpenFlamingo does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import END_OF_CHUNK, IMAGE

PAD = "<PAD>"
# Embedding tables are padded to a round number of rows; a gap larger than this is another model's
# tokenizer.
MOST_UNUSED_ROWS = 1024


@dataclass(frozen=True)
class TokenIds:
    """Ids that the model gives a meaning, and the length of the grown vocabulary."""

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


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer in a directory; never runs code from there.

    Raises:
      UserError: no tokenizer that can be read.
    """
    import transformers

    fast = (folder / "tokenizer.json").is_file()
    kind = transformers.PreTrainedTokenizerFast if fast else transformers.AutoTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} has no tokenizer that can be read; give the directory of one with "
            f"--tokenizer. ({reason})"
        ) from None


def grow_tokenizer(tokenizer: Any) -> TokenIds:
    """Add Flamingo's tokens, and a pad token where there is none (in place)."""
    from tokenizers import AddedToken

    for token in (END_OF_CHUNK, IMAGE):
        added = AddedToken(token, special=True, normalized=False)
        tokenizer.add_tokens([added], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    end_of_chunk, image = tokenizer.convert_tokens_to_ids([END_OF_CHUNK, IMAGE])
    return TokenIds(end_of_chunk, image, tokenizer.pad_token_id, len(tokenizer))


def check_fit(ids: TokenIds, rows: int, folder: Path) -> None:
    """UserError: a tokenizer made for another vocabulary than one of `rows` rows."""
    own = ids.end_of_chunk
    if not rows - MOST_UNUSED_ROWS < own <= rows:
        raise UserError(
            f"the tokenizer in {folder} has {own} tokens but the language model has {rows} "
            "token rows: give the tokenizer that belongs to the language model"
        )


def resize_rows(table: np.ndarray, rows: int) -> np.ndarray:
    """The first `rows` rows; those beyond the table are drawn from N(0, 0.02²), always the same.

    A padded table is cut, so that new tokens take over rows that no token of the tokenizer used:
    they are pretrained, if idle.
    """
    if rows <= len(table):
        return table[:rows]
    fresh = np.random.default_rng(0).normal(0, 0.02, (rows - len(table), *table.shape[1:]))
    return np.concatenate([table, fresh.astype(table.dtype)])
