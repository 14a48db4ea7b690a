from types import SimpleNamespace

import pytest

from flamingo_jax.plan.search import largest_batch, largest_fitting
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from tests import tiny


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


@pytest.mark.parametrize(
    ("given", "first"), [((32, 16), (32, 16)), ((2, 1), (16, 8)), ((24, 12), (32, 16))]
)
def test_a_batch_is_searched_among_those_that_the_mesh_can_cut(given, first):
    """On eight devices: from the config's batch, or the next one with its proportions."""
    values = tiny.get_config()
    values.streams.pairs.batch_size, values.streams.interleaved.batch_size = given

    def measure(config):
        rows = sum(sizes(config))
        return SimpleNamespace(config=config, per_device=SimpleNamespace(peak_gib=rows))

    def sizes(config):
        return tuple(config.streams[name].batch_size for name in ("pairs", "interleaved"))

    search = largest_batch(build(TrainConfig, values.to_dict()), 8, 100 * 2**30, measure)
    assert sizes(search.tried[0][1].config) == first
    assert sizes(search.config) == (64, 32)
    nothing = largest_batch(build(TrainConfig, values.to_dict()), 8, 2**30, measure)
    assert nothing.chosen is None
    assert sizes(nothing.config) == first
