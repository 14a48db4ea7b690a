"""Writes files that are there as a whole or not at all."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flamingo_jax.errors import UserError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a temporary file to write, which takes the place of `path` when it is complete.

    Its name is random: on a shared disk, containers of several hosts have the same process ids.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file, in folders that are made for it. UserError: it cannot be written."""
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): name another place, or make room"
        ) from None
