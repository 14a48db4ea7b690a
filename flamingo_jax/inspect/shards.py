"""What can be told of shards without reading their records."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flamingo_jax.data.stores import Store, TarStore
from flamingo_jax.data.tar_index import scan_tar
from flamingo_jax.errors import UserError


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
      records: it holds.
      num_bytes: of the file.
      damage: what of a tar is lost.
      repeated_keys: samples of a tar whose key an earlier one of the same tar has.
    """

    path: str
    records: int
    num_bytes: int
    damage: tuple[str, ...] = ()
    repeated_keys: int = 0


def check_shards(store: Store, limit: int) -> Iterator[Shard]:
    """Checks up to `limit` shards, evenly spread; of tars every header is read, index or none."""
    for number in spread(len(store.paths), limit):
        path, records = store.paths[number], int(store.sizes[number])
        num_bytes = os.path.getsize(path)
        damage: list[str] = []
        repeated = 0
        if isinstance(store, TarStore):
            try:
                rows, damage = scan_tar(path)
            except UserError as error:
                damage = [str(error)]
            else:
                first = np.flatnonzero(np.diff(rows["sample"], prepend=-1))
                repeated = len(first) - len(np.unique(rows["key"][first]))
        yield Shard(path, records, num_bytes, tuple(damage), repeated)


def spread(count: int, limit: int) -> list[int]:
    """Returns up to `limit` different numbers below `count`, evenly spread."""
    return sorted({int(n) for n in np.linspace(0, count - 1, min(count, limit))})
