"""Copies arrays that lie in mapped files, on several cores."""

import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Shaped

FEWEST_BYTES = 2**22  # of a copy that is worth starting threads for
MOST_THREADS = 16  # more do not fill memory faster


def copied(view: np.ndarray, dtype: Any) -> Shaped[np.ndarray, "..."]:
    """Returns a view's numbers in `dtype`, in memory of their own; see `fresh`."""
    out = fresh(view.shape, dtype)
    copy_into(out, view)
    return out


def copy_into(out: np.ndarray, view: np.ndarray) -> None:
    """Does `out[...] = view`, for arrays of one shape; ValueError for others.

    One thread would mostly wait: fresh memory and a file's pages come from the system page by page.
    """
    if out.shape != view.shape:
        raise ValueError(f"{view.shape} cannot be copied into {out.shape}")
    threads = min(os.cpu_count() or 1, MOST_THREADS, len(out)) if out.ndim else 1
    if out.nbytes < FEWEST_BYTES or threads < 2:
        out[...] = view
        return
    parts = np.array_split(out, threads), np.array_split(view, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(partial(np.copyto, casting="unsafe"), *parts))  # raises what they raise


def fresh(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
    """Returns an array whose memory starts with a page: JAX takes it as a CPU's own, and copies it
    no more. NumPy's starts 16 bytes later."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, max(size, 1), access=mmap.ACCESS_COPY)
    return np.frombuffer(pages, np.uint8, size).view(dtype).reshape(shape)
