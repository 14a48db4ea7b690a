"""Files that are there as a whole or not at all."""

from pathlib import Path

from flamingo_jax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write or replace a file, in folders that are made for it. UserError: it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): name another place, or make room"
        ) from None
