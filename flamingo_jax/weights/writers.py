"""Writes files of weights: streamed, and visible only when complete."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.weights.readers import SAFETENSORS_DTYPES


@dataclass(frozen=True)
class Entry:
    """One array to be written; `pieces` gives its data in order, so that one at a time is held."""

    shape: tuple[int, ...]
    dtype: Any
    pieces: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_safetensors(path: Path, entries: Mapping[str, Entry]) -> None:
    """Writes arrays by name, marked as transformers asks for ("pt")."""
    names = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": names[np.dtype(entry.dtype)],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 64)  # tensors start on aligned addresses when mapped
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries.values():
            for piece in entry.pieces():
                file.write(np.ascontiguousarray(piece, entry.dtype).view(np.uint8).data)


@contextmanager
def new_directory(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Makes a directory that appears only when complete; on any error nothing stays.

    Raises:
      UserError: `target` is there already or cannot be made, or the disk has no room for
        `needed_bytes`.
    """
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} exists already: choose another --out, or remove it first")
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed_bytes > free:
            raise UserError(
                f"no room on the disk for {target}: {needed_bytes / 1e9:.2f} GB are needed, "
                f"{free / 1e9:.2f} GB are free"
            )
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield work
            work.chmod(0o755)
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no room on the disk for {target}; nothing was left behind") from error
        raise UserError(f"writing {target} failed ({error}): choose another --out") from error
