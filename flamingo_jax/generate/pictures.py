"""Whatever a user calls a picture → the pixels the vision encoder sees."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flamingo_jax.data.images import MAX_PIXELS, ImageProcessor
from flamingo_jax.errors import UserError

# A PIL image, a path, the bytes of an image file, or an array: uint8 (H, W), (H, W, 1), (H, W, 3)
# or (H, W, 4), and (F, H, W, 3) for a video.
Picture = Image.Image | Path | bytes | np.ndarray
Medium = Picture | Sequence[Picture]  # a video is a sequence of frames
EXPECTED = "expected a PIL image, a pathlib.Path, the bytes of an image file or a uint8 array"


def is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image | Path | bytes | np.ndarray)


def pixels_of(
    medium: Medium, processor: ImageProcessor, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "F size size 3"]:
    """Returns the pixels of a picture (F = 1) or of the frames of a video, not normalised.

    Raises:
      UserError: no picture, one that cannot be read, or one of more than `max_pixels`.
    """
    frames: list[Any] = [medium]
    if isinstance(medium, list | tuple) or (isinstance(medium, np.ndarray) and medium.ndim == 4):
        frames = list(medium)
    if not frames:
        raise UserError("a video has no frames: give it at least one picture")
    return np.stack([_frame(frame, processor, max_pixels) for frame in frames])


def _frame(
    picture: Any, processor: ImageProcessor, max_pixels: int
) -> UInt8[np.ndarray, "size size 3"]:
    if isinstance(picture, Path | bytes):
        with _opened(picture, max_pixels) as file:
            return _pixels(file, processor, _name(picture))
    if isinstance(picture, Image.Image):
        _check_pixels(picture.size, max_pixels, "the picture")
        return _pixels(picture, processor, "the picture")
    if not is_picture(picture):
        raise UserError(f"{picture!r:.80} is no picture: {EXPECTED}")
    if picture.ndim >= 2:
        _check_pixels((picture.shape[1], picture.shape[0]), max_pixels, "the array")
    try:
        return processor.pixels(picture)
    except ValueError as error:
        raise UserError(f"{error}, or (frames, height, width, 3) for a video") from None


def _name(picture: Path | bytes) -> str:
    return str(picture) if isinstance(picture, Path) else "the picture"


def _opened(picture: Path | bytes, max_pixels: int) -> Image.Image:
    """The file, only its header read."""
    name = _name(picture)
    try:
        file = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
    except FileNotFoundError:
        raise UserError(f"there is no file {name}: give the path of a picture") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{name} has too many pixels: make it smaller") from None
    except Exception:  # Pillow raises many kinds on bytes that are no picture
        raise UserError(
            f"{name} cannot be read as a picture: give a JPEG, PNG, WebP or GIF file"
        ) from None
    try:
        _check_pixels(file.size, max_pixels, name)
    except UserError:
        file.close()
        raise
    return file


def _check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if math.prod(size) > max_pixels:
        raise UserError(
            f"{name} has {width} × {height} pixels, at most {max_pixels:,} are taken: "
            "make it smaller"
        )
    if not math.prod(size):
        raise UserError(f"{name} has {width} × {height} pixels: there is nothing to see in it")


def _pixels(
    image: Image.Image, processor: ImageProcessor, name: str
) -> UInt8[np.ndarray, "size size 3"]:
    try:
        return processor.pixels(image)
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        raise UserError(
            f"{name} is damaged ({type(error).__name__}): save it again, or give another one"
        ) from None
