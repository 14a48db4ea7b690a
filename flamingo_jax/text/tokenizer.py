"""Tokenizers by name, through the `tokenizers` library alone: workers start in no time."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import END_OF_CHUNK, IMAGE


@dataclass(frozen=True)
class TextTokens:
    """A tokenizer and the ids that the model gives a meaning."""

    tokenizer: Tokenizer
    end_of_chunk: int
    image: int
    end_of_text: str

    def encode(self, text: str) -> list[int]:
        """Ids, with the begin token of tokenizers that have one (OPT, LLaMA)."""
        return self.tokenizer.encode(text).ids

    def token_id(self, word: str) -> int:
        token = self.tokenizer.token_to_id(word)
        if token is None:
            raise KeyError(f"{word!r} is no token of this tokenizer")
        return token


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizer.json`, without the truncation and padding it may have been saved with."""
    tokenizer = Tokenizer.from_file(str(path))
    # `save_pretrained` keeps whatever truncation and padding were last in force.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def with_image_tokens(tokenizer: Tokenizer, name: str, vocab_size: int | None) -> TextTokens:
    """Adds `<|endofchunk|>` and `<image>` at a tokenizer's end, in place.

    Args:
      tokenizer: of the language model.
      name: what errors call it.
      vocab_size: rows of the language model's own embedding; the two tokens follow. None: there is
        no model that they must fit.

    Raises:
      UserError: the ids do not fit the model, or there is no end-of-text token.
    """
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (END_OF_CHUNK, IMAGE)]
    )
    ids = tokenizer.token_to_id(END_OF_CHUNK), tokenizer.token_to_id(IMAGE)
    vocab_size = ids[0] or 0 if vocab_size is None else vocab_size
    if ids != (vocab_size, vocab_size + 1):
        raise UserError(
            f"tokenizer {name!r} gives {END_OF_CHUNK} and {IMAGE} the ids {ids}, but with "
            f"decoder.vocab_size {vocab_size} the model's rows for them are "
            f"{(vocab_size, vocab_size + 1)}: set decoder.vocab_size to {ids[0]}"
        )
    return TextTokens(tokenizer, *ids, end_of_text=_end_of_text(tokenizer, name))


def _end_of_text(tokenizer: Tokenizer, name: str) -> str:
    known = ("</s>", "<|endoftext|>")
    for token in known:
        if tokenizer.token_to_id(token) is not None:
            return token
    raise UserError(f"tokenizer {name!r} has no end-of-text token (looked for: {', '.join(known)})")
