"""Batches ahead of their use: the next one on the devices, the one after it on the host."""

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")


class DevicePrefetcher(Generic[T, P]):
    """Brings elements to where they are used, while those before them are in use.

    Of the elements that are not yet taken, the first is placed and the second is fetched. So
    `take` waits for nothing, and a failure is known one element ahead.

    Args:
      elements: in the order of their use.
      count: how many will be taken.
      place: begins to bring an element to where it is used. It should not wait.
    """

    def __init__(self, elements: Generator[T, None, None], count: int, place: Callable[[T], P]):
        self._elements = elements
        self._left = count
        self._place = place
        self._fetched: list[T] = []  # none or one
        self._placed: list[P] = []  # none or one
        self._error: Exception | None = None
        self._fetch()
        self.advance()

    @property
    def failure(self) -> Exception | None:
        """Why there is no next element; None: there is one, or all have been taken."""
        return None if self._placed or self._fetched else self._error

    def take(self) -> P:
        """The next element, placed. Raises its failure, if there is one."""
        if self.failure is not None:
            raise self.failure
        if not self._placed:
            self.advance()
        if not self._placed:
            raise StopIteration
        return self._placed.pop()

    def advance(self) -> None:
        """Place the next element and fetch the one after it, for which this may wait.

        To be called when the devices have enough to do: after a step was sent to them.
        """
        if self._fetched and not self._placed:
            self._placed.append(self._place(self._fetched.pop()))
        if not self._fetched:
            self._fetch()

    def _fetch(self) -> None:
        if not self._left or self._error is not None:
            return
        self._left -= 1
        try:
            self._fetched.append(next(self._elements))
        except StopIteration:
            self._error = RuntimeError("the data ended before the last step")
        except Exception as error:
            self._error = error
