"""Batches one step ahead of their use."""

from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """Takes the next element while the last is used, so that a failure is known a step ahead.

    Attributes:
      failure: why there is no next element; None: there is one, or all have been taken.
    """

    def __init__(self, elements: Generator[T, None, None], count: int):
        self._elements = elements
        self._left = count
        self.failure: Exception | None = None
        self._next = self._fetch()

    def take(self) -> T:
        """The next element. Raises its failure, if there is one."""
        if self.failure is not None:
            raise self.failure
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, self._fetch()
        return current

    def _fetch(self) -> T | None:
        if not self._left:
            return None
        self._left -= 1
        try:
            return next(self._elements)
        except StopIteration:
            self.failure = RuntimeError("the data ended before the last step")
        except Exception as error:
            self.failure = error
        return None
