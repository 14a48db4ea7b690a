"""Time and memory of exact RICES search, beside a plain numpy search in the same run.

Features are a memory-mapped float16 file of random unit vectors. The plain search holds them, and
all products, in memory as float32; it looks at a part of the queries, and its time, in which
reading the file does not count, is given for all of them.

    python -m benchmarks.retrieval --json retrieval.json
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from benchmarks import report
from benchmarks.measuring import Peak, in_own_process
from flamingo_jax.similarity.retrieval import top_k

# Rows, queries, queries of the plain search. Large: some ten minutes.
SIZES = {
    "small": (100_000, 200, 100),
    "large": (1_000_000, 1_000, 100),
    "tiny": (2_000, 20, 20),
}
Load = Callable[[Path], np.ndarray]
Search = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def write_features(path: Path, rows: int, width: int, chunk: int = 50_000) -> None:
    rng = np.random.default_rng(0)
    features = open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, width))
    for start in range(0, rows, chunk):
        shape = (min(chunk, rows - start), width)
        features[start : start + chunk] = unit(rng.standard_normal(shape, np.float32))
    features.flush()


def mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def whole(path: Path) -> np.ndarray:
    return np.load(path).astype(np.float32)


def plain(query: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    products = query @ features.T
    best = np.argpartition(-products, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(products, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def measure(
    load: Load, search: Search, path: Path, query: np.ndarray, k: int
) -> tuple[np.ndarray, float, int]:
    """Returns result, seconds without loading, and growth of memory that is no file's pages."""
    with Peak() as peak:
        features = load(path)
        start = time.perf_counter()
        found = search(query, features, k)
        seconds = time.perf_counter() - start
    return found, seconds, peak.grown


def main(argv: Sequence[str]) -> None:
    parser = report.parser(__doc__, tuple(SIZES), devices=("cpu",))
    parser.add_argument("--width", type=int, default=768, help="of a feature")
    parser.add_argument("--k", type=int, default=32, help="neighbours of a query")
    args = report.parse(parser, argv)
    rows, queries, few = SIZES[args.size]
    query = unit(np.random.default_rng(1).standard_normal((queries, args.width), np.float32))
    table = report.Report("retrieval", args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write_features(path, rows, args.width)
        found, ours, peak = in_own_process(measure, mapped, top_k, path, query, args.k)
        expected, theirs, plain_peak = in_own_process(
            measure, whole, plain, path, query[:few], args.k
        )
    table.add("seconds", ours, theirs / few * queries, unit="s")
    table.add("peak_memory", peak / 2**20, plain_peak / 2**20, unit="MiB")
    table.add("same_rows", float(np.mean(found[:few] == expected)))
    table.note(f"{rows:,} rows of width {args.width}, {queries} queries, top {args.k}")
    table.note(f"the plain search looked at {few} of the queries")
    table.write()


if __name__ == "__main__":
    report.run(main)
