"""The tokenizer of a run, of a data worker and of a model directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from flamingo_jax.errors import UserError
from flamingo_jax.text import digit_words
from flamingo_jax.text.special_tokens import END_OF_CHUNK, IMAGE, PAD, SpecialTokens


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer, the ids that the model gives a meaning, and the token that ends a text."""

    tokenizer: Tokenizer
    special: SpecialTokens
    end_of_text: str

    def encode(self, text: str) -> list[int]:
        """Returns ids, with the begin token of tokenizers that have one (OPT, LLaMA)."""
        return self.tokenizer.encode(text).ids


def load_tokenizer(name: str, vocab_size: int | None) -> TextTokenizer:
    """Opens the tokenizer of a run, with Flamingo's two tokens at its end.

    It needs the `tokenizers` library alone, so that workers start in no time.

    Args:
      name: "digits" for the embedded data, or the path of a `tokenizer.json`.
      vocab_size: see `with_image_tokens`.

    Raises:
      UserError: no such file, or the ids do not fit the model.
    """
    if name == "digits":
        tokenizer = digit_words.tokenizer()
    elif Path(name).is_file():
        tokenizer = _read(Path(name))
    else:
        raise UserError(f"tokenizer {name!r} is neither 'digits' nor a tokenizer.json that exists")
    return with_image_tokens(tokenizer, name, vocab_size)


def load_transformers_tokenizer(folder: Path) -> Any:
    """Opens the transformers tokenizer in a directory; never runs code from there.

    Models are imported and asked with it: it is saved beside their weights. Workers that prepare
    data use `load_tokenizer` instead, whose library is loaded in no time.

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


def grow_tokenizer(tokenizer: Any) -> SpecialTokens:
    """Adds Flamingo's tokens, and a pad token where there is none, to a transformers tokenizer."""
    for token in (END_OF_CHUNK, IMAGE):
        tokenizer.add_tokens([_added(token)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    end_of_chunk, image = tokenizer.convert_tokens_to_ids([END_OF_CHUNK, IMAGE])
    return SpecialTokens(end_of_chunk, image, tokenizer.pad_token_id, len(tokenizer))


def with_image_tokens(tokenizer: Tokenizer, name: str, vocab_size: int | None) -> TextTokenizer:
    """Adds `<|endofchunk|>` and `<image>` at a tokenizer's end, in place.

    Args:
      tokenizer: of the language model.
      name: what errors call it.
      vocab_size: rows of the language model's own embedding; the two tokens follow. None: there is
        no model that they must fit.

    Raises:
      UserError: the ids do not fit the model, or there is no end-of-text token.
    """
    tokenizer.add_special_tokens([_added(END_OF_CHUNK), _added(IMAGE)])
    ids = tokenizer.token_to_id(END_OF_CHUNK), tokenizer.token_to_id(IMAGE)
    vocab_size = ids[0] or 0 if vocab_size is None else vocab_size
    if ids != (vocab_size, vocab_size + 1):
        raise UserError(
            f"tokenizer {name!r} gives {END_OF_CHUNK} and {IMAGE} the ids {ids}, but with "
            f"decoder.vocab_size {vocab_size} the model's rows for them are "
            f"{(vocab_size, vocab_size + 1)}: set decoder.vocab_size to {ids[0]}"
        )
    end_of_text, end = _end_of_text(tokenizer, name)
    pad = tokenizer.token_to_id(PAD)
    if pad is None or pad > ids[1] + 1:
        pad = end
    special = SpecialTokens(*ids, pad=pad, vocabulary=max(ids[1], pad) + 1)
    return TextTokenizer(tokenizer, special, end_of_text)


def _end_of_text(tokenizer: Tokenizer, name: str) -> tuple[str, int]:
    known = ("</s>", "<|endoftext|>")
    for token in known:
        if (found := tokenizer.token_to_id(token)) is not None:
            return token, found
    raise UserError(f"tokenizer {name!r} has no end-of-text token (looked for: {', '.join(known)})")


def _read(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    # `save_pretrained` keeps whatever truncation and padding were last in force.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)
