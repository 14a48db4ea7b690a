import pickle
import time
import tracemalloc

import numpy as np
import pytest

from flamingo_jax.data.order import FEW_RECORDS, MAX_RECORDS, Order
from flamingo_jax.errors import UserError

SIZES = np.array([5, 1, 7, 3, 4, 6, 2])


def places(order, epoch=0, key=(0, 1)):
    return [order.place(epoch * len(order) + i, key) for i in range(len(order))]


@pytest.mark.parametrize(
    ("shuffle", "window"),
    [("global", 1), ("window", 1), ("window", 3), ("window", 99), ("none", 1)],
)
def test_every_epoch_has_every_record_once(shuffle, window):
    order = Order(SIZES, shuffle, window)
    everything = [(s, i) for s, size in enumerate(SIZES) for i in range(size)]
    epochs = [places(order, epoch) for epoch in range(3)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert (epochs[0] == everything) == (shuffle == "none")
    if shuffle != "none":
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert places(order, 0, (1, 1)) not in epochs
        assert places(order, 0, (0, 2)) not in epochs
    assert places(pickle.loads(pickle.dumps(order)), 2) == epochs[2]


def test_a_window_has_few_shards_open():
    order = Order(np.full(20, 50), "window", 4)
    shards = [shard for shard, _ in places(order)]
    for start in range(0, 1000, 200):
        assert len(set(shards[start : start + 200])) == 4
    assert shards != sorted(shards)


def test_redraws_stay_in_the_epoch(rng):
    order = Order(SIZES)
    drawn = {order.redraw(2 * len(order) + 3, rng) for _ in range(500)}
    assert drawn == set(range(2 * len(order), 3 * len(order)))


def test_empty_and_enormous_streams_are_refused():
    for sizes in ([], [0, 0], [MAX_RECORDS, 1]):
        with pytest.raises(UserError, match="a stream has between 1 and"):
            Order(np.array(sizes, np.int64))


@pytest.mark.parametrize(("shuffle", "window"), [("global", 1), ("window", 2), ("window", 99)])
def test_large_epochs_are_permutations_too(shuffle, window):
    """Above `FEW_RECORDS`, numbers are permuted by a cipher instead of a table."""
    sizes = np.array([FEW_RECORDS + 1, 3, 4000, 1])
    order = Order(sizes, shuffle, window)
    found = places(order, 1)
    assert sorted(found) == [(s, i) for s, size in enumerate(sizes) for i in range(size)]
    assert found != sorted(found)


SHARDS, PER_SHARD = 217_000, 10_000


def seconds_per_place(order: Order, count: int = 3000) -> float:
    start = time.process_time()
    for position in range(len(order) // 2, len(order) // 2 + count):
        order.place(position, (0, 0))
    return (time.process_time() - start) / count


@pytest.mark.parametrize("shuffle", ["global", "window"])
def test_two_billion_records(shuffle):
    """Nothing grows but the sizes of the shards: 1.7 MB an array, of which there are four."""
    tracemalloc.start()
    order = Order(np.full(SHARDS, PER_SHARD), shuffle, 64)
    assert len(order) == 2_170_000_000
    found = {order.place(p, (0, 0)) for p in range(1_000_000_000, 1_000_005_000)}
    for epoch in range(1, 4):
        order.place(epoch * len(order), (0, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6
    assert len(found) == 5000
    assert all(0 <= s < SHARDS and 0 <= i < PER_SHARD for s, i in found)
    thousandth = Order(np.full(SHARDS // 1000, PER_SHARD), shuffle, 64)
    assert seconds_per_place(order) < 5 * seconds_per_place(thousandth)  # measured: 1.0 to 1.5


def test_two_billion_records_are_each_read_once():
    """The shards of an epoch are a permutation, and so are the records of a window; windows follow
    each other. Together they are an exact permutation of the epoch."""
    order = Order(np.full(SHARDS, PER_SHARD), "window", 2)
    seen = []
    for window in (0, 50_000, SHARDS // 2 - 1):
        first = window * 2 * PER_SHARD
        found = [order.place(p, (0, 0)) for p in range(first, first + 2 * PER_SHARD)]
        shards = sorted({shard for shard, _ in found})
        assert sorted(found) == [(s, i) for s in shards for i in range(PER_SHARD)]
        seen += shards
    assert len(set(seen)) == 6
    starts = range(0, len(order), 2 * PER_SHARD * 100)
    drawn = [order.place(start, (0, 0))[0] for start in starts]
    assert len(set(drawn)) == len(drawn)
