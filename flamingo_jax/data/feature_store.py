"""Arrays of one shape on disk, found by a key: written once, read by any number of processes."""

import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KEY_BYTES = 16
ENTRY = struct.Struct(f"<{KEY_BYTES}sII")  # key, check sum of the record, check sum of those two
RECORDS, INDEX = ".records", ".index"


@dataclass
class _Place:
    """Where a record lies; `checked`: it was read once and is what was written."""

    records: Path
    row: int
    checksum: int
    checked: bool = False


class FeatureStore:
    """A folder of shards. A shard is two files that only grow: the arrays one after another, and an
    index with an entry for each, written after it.

    Every process that writes has a shard of its own. What a kill left half-written has no entry; an
    array whose check sum is wrong counts as absent, and may be written again.

    Args:
      folder: made when it is not there.
      record_bytes: of each array.
      max_bytes: of all arrays below the folder's parent. When they are reached nothing more is
        written, which is told once.
    """

    def __init__(self, folder: Path, record_bytes: int, max_bytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._record_bytes = record_bytes
        others = folder.parent.rglob(f"*{RECORDS}")
        self._left = max_bytes - sum(path.stat().st_size for path in others)
        self._places = dict(_entries(folder))
        self._readers: dict[Path, int] = {}  # file descriptors
        self._full = False
        self._shard = folder / f"{time.time_ns():020d}-{os.getpid()}"  # of this process
        self._rows = 0  # in it

    def __len__(self) -> int:
        return len(self._places)

    def read(self, key: bytes, out: np.ndarray) -> bool:
        """Copies the array of a key into `out`; says whether there is a sound one.

        Files are read by place and not mapped into memory: a mapped file that is cut meanwhile, or
        a disk that fails, would end the process by a signal.
        """
        place = self._places.get(key)
        if place is None:
            return False
        target = out.view(np.uint8).reshape(-1)
        try:
            if place.records not in self._readers:
                self._readers[place.records] = os.open(place.records, os.O_RDONLY)
            offset = place.row * self._record_bytes
            size = os.preadv(self._readers[place.records], [target.data], offset)
        except OSError:
            size = 0
        if size == self._record_bytes:
            place.checked = place.checked or zlib.crc32(target.data) == place.checksum
        if size != self._record_bytes or not place.checked:
            del self._places[key]
            return False
        return True

    def write(self, key: bytes, array: np.ndarray) -> None:
        """Keeps an array, unless its key is known or there is no room for it."""
        if key in self._places or self._full:
            return
        if self._left < self._record_bytes:
            self._stop("it has reached config.data.vision_cache_gib")
            return
        try:
            self._places[key] = self._append(key, np.ascontiguousarray(array).view(np.uint8))
        except OSError as error:
            self._stop(f"it cannot be written ({error.strerror})")
            return
        self._left -= self._record_bytes

    def _append(self, key: bytes, data: np.ndarray) -> _Place:
        checksum = zlib.crc32(data.data)
        head = key + struct.pack("<I", checksum)
        records = self._shard.with_suffix(RECORDS)
        with records.open("ab") as file:
            file.write(data.data)
        with self._shard.with_suffix(INDEX).open("ab") as file:
            file.write(head + struct.pack("<I", zlib.crc32(head)))
        self._rows += 1
        return _Place(records, self._rows - 1, checksum)

    def _stop(self, reason: str) -> None:
        self._full = True
        print(f"note: the vision cache {self._folder} takes no more images: {reason}",
              file=sys.stderr, flush=True)  # fmt: skip

    def close(self) -> None:
        for reader in self._readers.values():
            os.close(reader)
        self._readers.clear()


def _entries(folder: Path) -> Iterator[tuple[bytes, _Place]]:
    """Reads the indexes; later shards after earlier ones, whose damage they replace."""
    for index in sorted(folder.glob(f"*{INDEX}")):
        data = index.read_bytes()
        for row, entry in enumerate(
            ENTRY.iter_unpack(data[: len(data) // ENTRY.size * ENTRY.size])
        ):
            key, checksum, own = entry
            if zlib.crc32(key + struct.pack("<I", checksum)) == own:
                yield key, _Place(index.with_suffix(RECORDS), row, checksum)
