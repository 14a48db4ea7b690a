"""Encoded images → the pixels CLIP sees: shortest side to size, bicubic, centre crop."""

import io
import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from flamingo_jax.data.records import BadRecordError

Decode = Literal["exact", "fast"]
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns of a decompression bomb
MAX_ASPECT = 8  # above it, only the part that is kept is resized


def decode_image(
    data: bytes, size: int, decode: Decode = "exact"
) -> UInt8[np.ndarray, "size size 3"]:
    """CLIP's preprocessing of an encoded image, but for the normalisation.

    "exact" is bit for bit what torchvision's Resize and CenterCrop give on a Pillow image. "fast"
    lets the JPEG decoder shrink large images and resizes only what the crop keeps. Of an animation
    the first frame is taken; transparency is dropped.

    Raises:
      BadRecordError: the bytes are no image that can be decoded, or too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            if math.prod(file.size) > MAX_PIXELS:
                raise BadRecordError(f"image of {file.size} pixels is above {MAX_PIXELS}")
            if decode == "fast":
                file.draft("RGB", (size, size))  # not below it
            see_through = file.mode == "P" and "transparency" in file.info
            image = file.convert("RGBA") if see_through else file  # Pillow warns otherwise
            image = image if image.mode == "RGB" else image.convert("RGB")
            return np.asarray(resize_and_crop(image, size, decode))
    except BadRecordError:
        raise
    except UnidentifiedImageError:  # its text has the address of an object
        raise BadRecordError("image cannot be decoded: no known format") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        raise BadRecordError(f"image cannot be decoded: {type(error).__name__}: {error}") from error


def resize_and_crop(image: Image.Image, size: int, decode: Decode = "exact") -> Image.Image:
    """The middle (size, size) of an image whose shortest side is resized to `size`."""
    width, height = image.size
    shortest = min(width, height)
    resized = size * width // shortest, size * height // shortest
    left, top = (round((side - size) / 2) for side in resized)
    if decode == "exact" and max(resized) <= MAX_ASPECT * size:
        # Pillow resizes rows, then columns; columns that the crop drops need no second pass.
        wide = image.resize((resized[0], height), Image.Resampling.BICUBIC)
        columns = wide.crop((left, 0, left + size, height))
        full = columns.resize((size, resized[1]), Image.Resampling.BICUBIC)
        return full.crop((0, top, size, top + size))
    across, down = width / resized[0], height / resized[1]
    box = (
        left * across,
        top * down,
        min(width, (left + size) * across),
        min(height, (top + size) * down),
    )
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
