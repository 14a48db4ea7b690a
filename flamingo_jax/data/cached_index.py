"""Memory-mapped index arrays, computed once per file."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.files import replaced

VERSION = 1  # of the arrays' meaning
# NumPy reads an array's header with `ast`, which early releases of Python 3.11 get wrong when two
# threads do so at a time (SystemError: AST constructor recursion depth mismatch).
_HEADERS = threading.Lock()


def index_path(path: str, index_dir: str) -> Path:
    """Returns where the index of a file is kept, beside it or in `index_dir`.

    The file's size is in the name, so that another file of the same name has another index.
    """
    name = f"{Path(path).name}.{os.path.getsize(path)}.v{VERSION}.npy"
    if not index_dir:
        return Path(path).with_name(f".{name}")
    digest = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]
    return Path(index_dir) / f"{digest}-{name}"


def load_index(path: str, index_dir: str, build: Callable[[str], np.ndarray]) -> np.ndarray:
    """Opens the index of a file, memory-mapped; builds it if it is missing or older than the file.

    Raises:
      UserError: it has to be built, and cannot be written.
    """
    target = index_path(path, index_dir)
    if _is_current(target, path):
        return _mapped(target)
    array = build(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _is_current(target, path):  # whoever built it meanwhile has mapped it
            with replaced(target) as temporary, temporary.open("wb") as file:
                np.save(file, array)
    except OSError as error:
        raise UserError(
            f"the index of {path} cannot be kept in {target.parent} ({error.strerror}): set the "
            "stream's options.index_dir to a directory that can be written"
        ) from None
    return _mapped(target)


def _is_current(index: Path, path: str) -> bool:
    return index.exists() and index.stat().st_mtime_ns >= os.stat(path).st_mtime_ns


def _mapped(path: Path) -> np.ndarray:
    with _HEADERS:
        return np.load(path, mmap_mode="r")
