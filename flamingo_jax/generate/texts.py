"""Between a model's tokens and the text that people see."""

import functools
from collections.abc import Sequence
from typing import Any

from flamingo_jax.generate.prompts import ReadPrompt
from flamingo_jax.text.stop_strings import StopStrings


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text without the tokens that have a meaning of their own."""
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def tokens_after(tokenizer: Any, prompt: ReadPrompt, text: str) -> list[int]:
    """The tokens of a text where it stands after a prompt."""
    space = "" if prompt.text.endswith((" ", "\n", ">")) else " "
    whole = tokenizer(prompt.text + space + text).input_ids
    before = prompt.tokens_L.tolist()
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before) :]
    return tokenizer(space + text, add_special_tokens=False).input_ids


def stop_strings(tokenizer: Any, strings: Sequence[str]) -> StopStrings | None:
    """Returns what ends a text; None: only tokens do. ValueError: an empty string, or no list."""
    if not strings:
        return None
    if isinstance(strings, str):
        raise ValueError(f"stop is {strings!r}: give a list of strings")
    return StopStrings(tuple(strings), functools.partial(decoded, tokenizer))


def emittable_prefix(text: str, stop: Sequence[str]) -> str:
    """Returns what stays of a text that grows.

    A character whose bytes are not all there is held back, and what may be the beginning of a
    string that ends the text.
    """
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    begun = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    return text[: len(text) - max(begun, default=0)]
