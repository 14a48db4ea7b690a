from collections.abc import Iterator

import pytest

from flamingo_jax.train.feed import DevicePrefetcher


def numbers(count: int, error: Exception | None = None) -> Iterator[int]:
    yield from range(count)
    if error is not None:
        raise error


def feed(elements, count: int) -> DevicePrefetcher:
    return DevicePrefetcher(elements, count, put=lambda number: f"put {number}")


def test_all_elements_in_order():
    ahead = feed(numbers(10), 3)
    taken = []
    for _ in range(3):
        taken.append(next(ahead))
        ahead.prefetch()
    assert taken == ["put 0", "put 1", "put 2"]
    assert ahead.failure is None


def test_the_next_is_put_on_the_devices_and_the_one_after_it_fetched():
    events = []

    def elements():
        for number in range(5):
            events.append(f"fetch {number}")
            yield number

    ahead = DevicePrefetcher(elements(), 4, put=lambda number: events.append(f"put {number}"))
    assert events == ["fetch 0", "put 0", "fetch 1"]
    next(ahead)
    assert events == ["fetch 0", "put 0", "fetch 1"]  # taking waits for nothing
    ahead.prefetch()
    ahead.prefetch()
    assert events[3:] == ["put 1", "fetch 2"]
    for _ in range(3):
        next(ahead)
        ahead.prefetch()
    assert events[5:] == ["put 2", "fetch 3", "put 3"]  # and nothing beyond the count


def test_a_failure_is_known_while_there_is_still_an_element():
    error = ValueError("damaged")
    ahead = feed(numbers(2, error), 5)
    assert next(ahead) == "put 0"
    ahead.prefetch()  # the failure is met
    assert ahead.failure is None
    assert next(ahead) == "put 1"
    assert ahead.failure is error
    ahead.prefetch()
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)


def test_data_that_ends_early_is_a_failure():
    assert "the data ended before the last step" in str(feed(numbers(0), 1).failure)
    assert feed(numbers(0), 0).failure is None
