"""Records in files, read at random by (shard, index): tars, JSON lines, TFDS datasets."""

import glob
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64

from flamingo_jax.data.cached_index import load_index
from flamingo_jax.data.records import BadRecordError, Record
from flamingo_jax.data.tar_index import build_tar_index
from flamingo_jax.data.tfds_store import PREFIX, TfdsDirectory, TfdsName, TfdsStore
from flamingo_jax.errors import UserError

MAX_OPEN = 64  # shards held open by one process


class Store(Protocol):
    """Random access to records. Pickles without open files or mapped memory."""

    paths: list[str]  # of the shards
    sizes: Int64[np.ndarray, "shards"]  # records per shard

    def record(self, shard: int, index: int) -> Record:
        """Reads one. BadRecordError: the record cannot be read."""
        ...


def expand(pattern: str, setting: str = "the stream's options.shards") -> list[str]:
    """Lists the files a pattern names: `{0..9}` counts, `{a,b}` lists, `*` and `?` match.

    Args:
      pattern: what is expanded.
      setting: where it was given, for errors.

    Raises:
      UserError: a file that is named does not exist, or nothing matches.
    """
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}", pattern)
    if braces:
        first, last, words = braces.groups()
        if first is None:
            choices = words.split(",")
        else:
            choices = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
        head, tail = pattern[: braces.start()], pattern[braces.end() :]
        return [path for choice in choices for path in expand(head + choice + tail, setting)]
    if glob.has_magic(pattern):
        found = sorted(glob.glob(pattern))
        if not found:
            raise UserError(f"no file matches {pattern!r}: check {setting}")
        return found
    if not os.path.exists(pattern):
        raise UserError(f"{pattern!r} does not exist: check {setting}")
    return [pattern]


def open_store(shards: str, index_dir: str = "") -> Store:
    """Opens the records that `shards` names.

    Args:
      shards: tars or .jsonl files as a pattern (see `expand`), a directory of .jsonl files, a
        directory written by TensorFlow Datasets, with `directory:SPLIT` for a split but "train", or
        one of its datasets by name (see `tfds_store.TfdsName`).
      index_dir: where the indices of tars and .jsonl files are kept; by default beside them.

    Raises:
      UserError: nothing there, files of a kind that is not known, or an empty file.
    """
    if shards.startswith(PREFIX):
        return TfdsStore(TfdsName.parse(shards))
    directory, _, split = shards.partition(":")
    if (Path(directory) / "features.json").is_file():
        return TfdsStore(TfdsDirectory(directory, split or "train"))
    if Path(shards).is_dir():
        shards = f"{glob.escape(shards)}/*.jsonl"
    paths = expand(shards)
    endings = {Path(path).suffix for path in paths}
    if endings == {".tar"}:
        return TarStore(paths, index_dir)
    if endings == {".jsonl"}:
        return JsonLinesStore(paths, index_dir)
    raise UserError(
        f"{shards!r} names files that end in {', '.join(sorted(endings))}; expected .tar, .jsonl, "
        "a directory of .jsonl files, a TFDS directory with its features.json, or tfds:NAME"
    )


class _Files:
    """Files with an index each, of which the last few used are open."""

    def __init__(self, paths: list[str], index_dir: str, build: Callable[[str], np.ndarray]):
        self.paths, self._index_dir, self._build = paths, index_dir, build
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()

    def index(self, path: str) -> np.ndarray:
        return load_index(path, self._index_dir, self._build)

    def sizes(self, count: Callable[[np.ndarray], int]) -> np.ndarray:
        with ThreadPoolExecutor(8) as pool:  # mounted buckets answer slowly, but many at a time
            counts = pool.map(lambda path: count(self.index(path)), self.paths)
            return np.array(list(counts), np.int64)

    def opened(self, shard: int) -> tuple[int, np.ndarray]:
        """Returns (file descriptor, index) of a shard."""
        if shard not in self._open:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.popitem(last=False)[1][0])
            path = self.paths[shard]
            self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC), self.index(path)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)


class TarStore:
    """WebDataset tars; fields are the bytes of a sample's files by extension."""

    def __init__(
        self,
        paths: list[str],
        index_dir: str = "",
        build: Callable[[str], np.ndarray] | None = None,
    ):
        self.paths, self._files = paths, _Files(paths, index_dir, build or build_tar_index)
        self.sizes = self._files.sizes(lambda members: int(members[-1]["sample"]) + 1)

    def record(self, shard: int, index: int) -> Record:
        descriptor, members = self._files.opened(shard)
        start, end = np.searchsorted(members["sample"], [index, index + 1])
        rows = members[start:end]
        fields = {
            row["extension"].decode(): _read(descriptor, int(row["offset"]), int(row["size"]))
            for row in rows
        }
        return Record(self.paths[shard], rows[0]["key"].decode(), fields)


class JsonLinesStore:
    """One JSON object per line; image files are named relative to the .jsonl file."""

    def __init__(self, paths: list[str], index_dir: str = ""):
        self.paths, self._files = paths, _Files(paths, index_dir, _line_starts)
        self.sizes = self._files.sizes(lambda starts: len(starts) - 1)

    def record(self, shard: int, index: int) -> Record:
        path = self.paths[shard]
        descriptor, starts = self._files.opened(shard)
        start, end = (int(starts[i]) for i in (index, index + 1))
        line = _read(descriptor, start, end - start).split(b"\n")[0]
        return Record(path, str(index), {"json": line}, os.path.dirname(path) or os.curdir)


def _line_starts(path: str) -> np.ndarray:
    """Returns where each line that is not blank starts, and at last where the file ends."""
    starts, position = [], 0
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                starts.append(position)
            position += len(line)
    if not starts:
        raise UserError(f"{path} has no lines: remove it, or write one JSON object per line")
    return np.array([*starts, position], np.int64)


def _read(descriptor: int, offset: int, size: int) -> bytes:
    pieces = []
    while size > 0:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            raise BadRecordError("the file has become shorter since it was indexed")
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)
