"""Which record stands at a position of a stream: a permutation of all records in every epoch.

Nothing is stored but the sizes of the shards, and a look-up costs the same for any number of
records. Grain's index shuffle, a cipher on the integers below n, does the permuting.
"""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from flamingo_jax.errors import UserError

Shuffle = Literal["global", "window", "none"]
# Below it, the index shuffle takes up to a millisecond per look-up, and a table costs nothing.
FEW_RECORDS = 4096
MAX_RECORDS = 2**32 - 1  # what the index shuffle can permute
Key = tuple[int, ...]


class Order:
    """The order of one stream's records.

    "global" permutes all records. "window" permutes the shards, then the records of
    `window_shards` of them at a time, so that few shards are read at once. "none" reads in order.

    Raises:
      UserError: no records, or more than can be permuted.
    """

    def __init__(
        self,
        sizes: Int64[np.ndarray, "shards"],
        shuffle: Shuffle = "global",
        window_shards: int = 1,
    ):
        self._sizes = np.asarray(sizes, np.int64)
        self._ends = np.cumsum(self._sizes)
        self._shuffle = shuffle
        self._window_shards = window_shards
        self._layout: tuple[tuple[Key, int], np.ndarray, np.ndarray] | None = None
        if not 0 < len(self) <= MAX_RECORDS:
            raise UserError(f"{len(self)} records; a stream has between 1 and {MAX_RECORDS}")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, position: int, key: Key) -> tuple[int, int]:
        """Returns (shard, index in it) of a position; `key` is the seed."""
        epoch, offset = divmod(position, len(self))
        if self._shuffle == "window":
            return self._place_in_window(offset, key, epoch)
        if self._shuffle == "global":
            offset = int(_permuted(len(self), (*key, epoch))[offset])
        return _locate(self._ends, offset)

    def redraw(self, position: int, rng: np.random.Generator) -> int:
        """Draws a position anywhere in the same epoch, to take a bad record's place."""
        epoch = position // len(self)
        return epoch * len(self) + int(rng.integers(len(self)))

    def _place_in_window(self, offset: int, key: Key, epoch: int) -> tuple[int, int]:
        shards, ends = self._shards_of_epoch(key, epoch)
        window = _locate(ends, offset)[0] // self._window_shards
        first = window * self._window_shards
        last = min(first + self._window_shards, len(ends))
        start = int(ends[first - 1]) if first else 0
        permuted = int(
            _permuted(int(ends[last - 1]) - start, (*key, epoch, window))[offset - start]
        )
        place, index = _locate(ends, start + permuted)
        return int(shards[place]), index

    def _shards_of_epoch(self, key: Key, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in the epoch's order, and the positions at which they end."""
        if self._layout is None or self._layout[0] != (key, epoch):
            shards = np.random.default_rng((*key, epoch)).permutation(len(self._sizes))
            self._layout = (key, epoch), shards, np.cumsum(self._sizes[shards])
        return self._layout[1:]


def _locate(ends: np.ndarray, offset: int) -> tuple[int, int]:
    shard = int(np.searchsorted(ends, offset, side="right"))
    return shard, offset - (int(ends[shard - 1]) if shard else 0)


@lru_cache(maxsize=256)
def _permuted(n: int, key: Key) -> Any:
    """Returns the permuted numbers below n, by index."""
    if n <= FEW_RECORDS:
        return np.random.default_rng(key).permutation(n)
    # Grain adds the epoch to its seed; hashed seeds keep runs from repeating each other's epochs.
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    import grain  # it imports JAX, see `workers`

    return grain.MapDataset.range(n).shuffle(seed=seed)
