"""The tokenizer that a run names in its config."""

from pathlib import Path

from flamingo_jax.data import digits
from flamingo_jax.errors import UserError
from flamingo_jax.text.tokenizer import TextTokens, read_tokenizer, with_image_tokens


def load_tokenizer(name: str, vocab_size: int | None) -> TextTokens:
    """Opens the tokenizer of a run, with Flamingo's two tokens at its end.

    Args:
      name: "digits" for the embedded data, or the path of a `tokenizer.json`.
      vocab_size: see `with_image_tokens`.

    Raises:
      UserError: no such file, or the ids do not fit the model.
    """
    if name == "digits":
        tokenizer = digits.tokenizer()
    elif Path(name).is_file():
        tokenizer = read_tokenizer(Path(name))
    else:
        raise UserError(f"tokenizer {name!r} is neither 'digits' nor a tokenizer.json that exists")
    return with_image_tokens(tokenizer, name, vocab_size)
