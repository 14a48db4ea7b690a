import pytest

from flamingo_jax.planning.search import largest_fitting


@pytest.mark.parametrize("start", [1, 2, 7, 40])
@pytest.mark.parametrize("bend", [0.0, 0.05])
@pytest.mark.parametrize("best", [0, 1, 5, 23, 64])
def test_the_largest_that_fits_is_found_with_few_compilations(start, bend, best):
    tried = []

    def peak(k: int) -> float:
        tried.append(k)
        return 1000 + 100 * k + bend * k**2

    capacity = 1000 + 100 * (best + 0.5) + bend * (best + 0.5) ** 2
    assert largest_fitting(peak, capacity, start) == best
    assert len(tried) == len(set(tried)) <= 8


def test_a_compiler_that_only_refuses_is_enough():
    assert largest_fitting(lambda k: 1.0 if k <= 9 else float("inf"), 2.0, 3) == 9
