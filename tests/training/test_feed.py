import pytest

from flamingo_jax.training.feed import Feed


def numbers(count: int, error: Exception | None = None):
    yield from range(count)
    if error is not None:
        raise error


def test_all_elements_in_order():
    feed = Feed(numbers(10), 3)
    assert [feed.take() for _ in range(3)] == [0, 1, 2]
    assert feed.failure is None


def test_a_failure_is_known_while_there_is_still_an_element():
    error = ValueError("damaged")
    feed = Feed(numbers(2, error), 5)
    assert feed.take() == 0
    assert feed.failure is None
    assert feed.take() == 1
    assert feed.failure is error
    with pytest.raises(ValueError, match="damaged"):
        feed.take()


def test_data_that_ends_early_is_a_failure():
    assert "the data ended before the last step" in str(Feed(numbers(0), 1).failure)
