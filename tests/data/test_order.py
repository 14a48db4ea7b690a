import pickle
import time

import numpy as np
import pytest

from flamingo_jax.data.order import MAX_RECORDS, Order
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


@pytest.mark.parametrize("shuffle", ["global", "window"])
def test_two_billion_records(shuffle):
    order = Order(np.full(217_000, 10_000), shuffle, 64)
    assert len(order) == 2_170_000_000
    order.place(0, (0, 0))
    start = time.perf_counter()
    found = {order.place(p, (0, 0)) for p in range(1_000_000_000, 1_000_005_000)}
    assert (time.perf_counter() - start) / 5000 < 1e-3  # measured: some 15 µs
    assert len(found) == 5000
    assert all(0 <= s < 217_000 and 0 <= i < 10_000 for s, i in found)
