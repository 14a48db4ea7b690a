"""Memory that a server keeps after a request."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def held() -> int:
    """Resident bytes of this process, without what is free and only not given back yet."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


@contextmanager
def keeping_less_than(mebibytes: int) -> Iterator[None]:
    before = held()
    yield
    kept = held() - before
    assert kept < mebibytes * 2**20, f"{kept / 2**20:.0f} MiB are kept"
