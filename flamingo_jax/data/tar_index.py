"""The files inside a WebDataset tar: one row per file, and which of them form a sample."""

import logging
import os
import tarfile

import numpy as np

from flamingo_jax.errors import UserError

BLOCK = tarfile.BLOCKSIZE


def build_tar_index(path: str) -> np.ndarray:
    """Returns the rows of `scan_tar`; a warning tells of damage."""
    rows, lost = scan_tar(path)
    if lost:
        logging.warning("%s is damaged; lost: %s", path, "; ".join(lost))
    return rows


def scan_tar(path: str) -> tuple[np.ndarray, list[str]]:
    """Rows (sample, offset, size, key, extension), one per file, in the order of the tar; and what
    is lost.

    Neighbours with the same key are one sample; a key ends at the first dot of the file's name.
    Damage costs what is damaged: the headers after it are found again, and bytes that belong to no
    file are lost. (tarfile by itself ends silently at the first damaged header.)

    Raises:
      UserError: nothing in the file is a tar member.
    """
    rows: list[tuple[int, int, int, bytes, bytes]] = []
    lost: list[str] = []
    end, sample, last_key = 0, -1, None
    total = os.path.getsize(path)
    with open(path, "rb") as file:
        for member in _members(path):
            if member.offset > end and _holds_data(file, end, member.offset):
                lost.append(f"{member.offset - end} bytes at {end}")
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            if not member.isreg():
                continue
            # tarfile gives surrogates for bytes that are no UTF-8. As escapes they can be written
            # wherever a key is: to logs, pages and prepared shards.
            name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            if member.offset_data + member.size > total:
                lost.append(f"{name}, which the end of the file cuts off")
                continue
            key, extension = split_name(name)
            sample += key != last_key
            last_key = key
            size = member.size
            rows.append((sample, member.offset_data, size, key.encode(), extension.encode()))
        if total > end and _holds_data(file, end, total):
            lost.append(f"{total - end} bytes at {end}")
    if not rows:
        raise UserError(f"{path} holds no tar member that can be read: is it a tar file?")
    key_width = max(len(key) for *_, key, _ in rows)
    extension_width = max(1, *(len(extension) for *_, extension in rows))
    columns = [
        ("sample", "<u4"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("key", f"S{key_width}"),
        ("extension", f"S{extension_width}"),
    ]
    return np.array(rows, columns), lost


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: "a/b.seg.jpg" is part "seg.jpg" of sample "a/b"."""
    directory, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(directory, stem), extension.lower()


def _members(path: str):
    """Lists every member that has an intact header."""
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()  # type: ignore[attr-defined] # tarfile would keep them all
    except tarfile.TarError as error:
        logging.warning("%s: headers are read up to an error: %s", path, error)


def _holds_data(file, start: int, end: int) -> bool:
    """Tells whether anything but zeros, which tars are padded with, stands there."""
    file.seek(start)
    while start < end:
        piece = file.read(min(1 << 20, end - start))
        if not piece or piece.count(0) != len(piece):
            return bool(piece)
        start += len(piece)
    return False
