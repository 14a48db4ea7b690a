"""Pictures → the pixels a vision encoder sees: upright, shortest side to size, centre crop.

Cameras store a photo as the sensor lay and note in the file (EXIF) how it is to be turned. Every
way to the model, in training as in serving, shows the photo turned by that note.
"""

import contextlib
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from flamingo_jax.data.records import BadRecordError

Decode = Literal["exact", "fast"]
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns of a decompression bomb
MAX_ASPECT = 8  # above it, only the part that is kept is resized


@dataclass(frozen=True)
class ImageProcessor:
    """Makes the pixels of one vision encoder from pictures of any kind.

    Attributes:
      size: height and width of the pixels.
      mean, std: of each channel in [0, 1]; the encoder itself normalises by them.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def decode(self, data: bytes, decode: Decode = "exact") -> UInt8[np.ndarray, "size size 3"]:
        """Returns the pixels of an encoded image; see `decode_image`."""
        return decode_image(data, self.size, decode)

    def pixels(self, picture: Image.Image | np.ndarray) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the pixels of a picture.

        Args:
          picture: a PIL image, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

        Raises:
          ValueError: an array of another type or shape.
        """
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture)
        return np.asarray(resize_and_crop(_upright_rgb(picture), self.size))

    def settings(self) -> dict[str, Any]:
        """Returns the preprocessing as transformers' image processors write it down."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }


def decode_image(
    data: bytes, size: int, decode: Decode = "exact"
) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the pixels of an encoded image, not normalised.

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
            return np.asarray(resize_and_crop(_upright_rgb(file), size, decode))
    except BadRecordError:
        raise
    except UnidentifiedImageError:  # its text has the address of an object
        raise BadRecordError("image cannot be decoded: no known format") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        raise BadRecordError(f"image cannot be decoded: {type(error).__name__}: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # many kinds, of damaged notes on sound pictures
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns otherwise
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    gray = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 1)
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ValueError(
            f"an array of {array.dtype} {array.shape} is no picture: expected uint8 (height, "
            "width) or (height, width, 3 or 4)"
        )
    return Image.fromarray(array[..., 0] if array.ndim == 3 and gray else array)


def resize_and_crop(image: Image.Image, size: int, decode: Decode = "exact") -> Image.Image:
    """Returns the middle (size, size) of an image whose shortest side is resized to `size`."""
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
