"""Time and memory of exact RICES search, beside a plain numpy search in the same run.

Features are a memory-mapped float16 file of random unit vectors. The plain search holds them, and
all products, in memory as float32; it looks at a part of the queries, and its time, in which
reading the file does not count, is given for all of them.

    python -m benchmarks.retrieval --json retrieval.json
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from benchmarks.convert_memory import Peak
from flamingo_jax.evaluation.retrieval import top_k


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


def measure(load, search, path: Path, query: np.ndarray, k: int) -> tuple[np.ndarray, float, int]:
    """Result, seconds without loading, and growth of the memory that is not a file's pages."""
    with Peak() as peak:
        features = load(path)
        start = time.perf_counter()
        found = search(query, features, k)
        seconds = time.perf_counter() - start
    return found, seconds, peak.highest - peak.start


def in_own_process(*args) -> tuple[np.ndarray, float, int]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--plain-queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    query = unit(rng.standard_normal((args.queries, args.width), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write_features(path, args.rows, args.width)
        found, seconds, peak = in_own_process(mapped, top_k, path, query, args.k)
        few = min(args.plain_queries, args.queries)
        expected, plain_seconds, plain_peak = in_own_process(
            whole, plain, path, query[:few], args.k
        )
    result = {
        **{name: getattr(args, name) for name in ("rows", "width", "queries", "k")},
        "seconds": round(seconds, 1),
        "peak_mib": round(peak / 2**20),
        "plain_seconds_per_query": round(plain_seconds / few, 3),
        "plain_seconds_for_all": round(plain_seconds / few * args.queries, 1),
        "plain_peak_mib": round(plain_peak / 2**20),
        "same_rows": float(np.mean(found[:few] == expected)),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
