"""Strings that end a text, wherever the tokens that spell them begin and end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopStrings:
    """What ends a text.

    Attributes:
      strings: any of them, none empty.
      decode: tokens → text, as a tokenizer's `decode`.
    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def __post_init__(self) -> None:
        if isinstance(self.strings, str) or not self.strings or not all(self.strings):
            raise ValueError(f"stop strings are {self.strings!r}: give at least one, none empty")

    def length(self, tokens: Sequence[int]) -> int | None:
        """Counts tokens up to the one with which a string is complete; None: there is none."""
        if not self._is_in(tokens):
            return None
        return next(n for n in range(1, len(tokens) + 1) if self._is_in(tokens[:n]))

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text before the first of the strings."""
        text = self.decode(tokens)
        return text[: min((i for s in self.strings if (i := text.find(s)) >= 0), default=None)]

    def _is_in(self, tokens: Sequence[int]) -> bool:
        text = self.decode(tokens)
        return any(string in text for string in self.strings)
