"""Which images are kept, and image files beside a corpus."""

import errno
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flamingo_jax.data.images import decode_image
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.errors import UserError
from flamingo_jax.prepare.options import option
from flamingo_jax.prepare.survival import DroppedError

NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Fields of every preparation that reads images."""

    min_image_bytes: int = option(0, "smaller files are dropped")
    min_side: int = option(0, "images with a shorter side are dropped; pixels")
    max_aspect: float = option(0.0, "longer ones are dropped: long side / short side; 0: none is")
    verify: bool = option(True, "decode every image, and drop those that cannot be")

    def check(self, data: bytes) -> None:
        """Raises DroppedError where this encoded image is not wanted."""
        if len(data) < self.min_image_bytes:
            raise DroppedError("image of too few bytes", str(len(data)))
        if self.verify:
            try:
                decode_image(data, 32, "fast")
            except BadRecordError as error:
                raise DroppedError("damaged image", str(error)) from None
        if self.min_side or self.max_aspect:
            short, long = sorted(_sides(data))
            if short < self.min_side:
                raise DroppedError("image too small", f"{short} pixels")
            if self.max_aspect and long > self.max_aspect * short:
                raise DroppedError("image too long", f"{long}×{short} pixels")


def _sides(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception as error:  # Pillow's readers raise many kinds on damaged bytes
        raise DroppedError("damaged image", f"{type(error).__name__}") from None


def check_directory(path: str) -> None:
    """Raises UserError where it is no directory, so that every image would be missing."""
    if not Path(path).is_dir():
        raise UserError(f"--images={path} is no directory: name the one of the downloaded images")


def read_image(directories: list[Path], name: Any) -> bytes:
    """Reads a file of one of these directories. DroppedError: it is in none, or outside of them."""
    if (
        not isinstance(name, str)
        or not name
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise DroppedError("image missing", f"{name!r} is no file name")
    for directory in directories:
        try:
            return (directory / name).read_bytes()
        except OSError as error:
            if error.errno not in NO_FILE:  # not the corpus' fault: the shard is to be made again
                raise
    raise DroppedError("image missing", name)
