from collections.abc import Iterator

import pytest

from flamingo_jax.train.feed import DevicePrefetcher


def numbers(count: int, error: Exception | None = None) -> Iterator[int]:
    yield from range(count)
    if error is not None:
        raise error


def feed(elements, count: int) -> DevicePrefetcher:
    return DevicePrefetcher(elements, count, place=lambda number: f"placed {number}")


def test_all_elements_in_order():
    ahead = feed(numbers(10), 3)
    taken = []
    for _ in range(3):
        taken.append(ahead.take())
        ahead.advance()
    assert taken == ["placed 0", "placed 1", "placed 2"]
    assert ahead.failure is None


def test_the_next_is_placed_and_the_one_after_it_fetched():
    events = []

    def elements():
        for number in range(5):
            events.append(f"fetch {number}")
            yield number

    ahead = DevicePrefetcher(elements(), 4, place=lambda number: events.append(f"place {number}"))
    assert events == ["fetch 0", "place 0", "fetch 1"]
    ahead.take()
    assert events == ["fetch 0", "place 0", "fetch 1"]  # taking waits for nothing
    ahead.advance()
    ahead.advance()
    assert events[3:] == ["place 1", "fetch 2"]
    for _ in range(3):
        ahead.take()
        ahead.advance()
    assert events[5:] == ["place 2", "fetch 3", "place 3"]  # and nothing beyond the count


def test_a_failure_is_known_while_there_is_still_an_element():
    error = ValueError("damaged")
    ahead = feed(numbers(2, error), 5)
    assert ahead.take() == "placed 0"
    ahead.advance()  # the failure is met
    assert ahead.failure is None
    assert ahead.take() == "placed 1"
    assert ahead.failure is error
    ahead.advance()
    with pytest.raises(ValueError, match="damaged"):
        ahead.take()


def test_data_that_ends_early_is_a_failure():
    assert "the data ended before the last step" in str(feed(numbers(0), 1).failure)
    assert feed(numbers(0), 0).failure is None
