import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.images import ImageProcessor, decode_image
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.pictures import Pictures
from flamingo_jax.generate.pictures import pixels_of

PROCESSOR = ImageProcessor(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def photo(rng):
    return Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))


def encoded(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_all_ways_to_give_a_picture_are_one(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    expected = pixels_of(photo, PROCESSOR)
    assert expected.shape == (1, 8, 8, 3)
    assert expected.dtype == np.uint8
    for picture in (tmp_path / "photo.png", encoded(photo), np.asarray(photo)):
        np.testing.assert_array_equal(pixels_of(picture, PROCESSOR), expected)


def test_a_video_is_its_frames(photo, rng):
    other = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    video = pixels_of([photo, other], PROCESSOR)
    np.testing.assert_array_equal(video[0], pixels_of(photo, PROCESSOR)[0])
    np.testing.assert_array_equal(video[1], pixels_of(other, PROCESSOR)[0])
    array = rng.integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(array, PROCESSOR), pixels_of(list(array), PROCESSOR))


def test_gray_arrays_and_transparency_are_taken(rng):
    gray = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    colored = np.repeat(gray[..., None], 3, axis=-1)
    for array in (gray, gray[..., None], np.dstack([colored, 255 - gray])):
        np.testing.assert_array_equal(pixels_of(array, PROCESSOR)[0], colored)
    palette = Image.fromarray(gray).convert("P")
    assert pixels_of(encoded(palette, transparency=0), PROCESSOR).shape == (1, 8, 8, 3)


def test_every_way_to_the_model_shows_a_turned_photo_upright(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn right to show"
    file = encoded(photo.transpose(Image.Transpose.ROTATE_90), exif=exif)
    expected = PROCESSOR.pixels(photo)
    task = SimpleNamespace(picture=lambda data, name: file)
    ways = {
        "serving": pixels_of(file, PROCESSOR)[0],
        "training": decode_image(file, PROCESSOR.size),
        "evaluation": Pictures(task, Path(), PROCESSOR, kept=1).pixels("photo"),
        "similarity": PROCESSOR.pixels(Image.open(io.BytesIO(file))),
    }
    for way, pixels in ways.items():
        np.testing.assert_array_equal(pixels, expected, err_msg=way)


BOMB = Image.new("1", (30_000, 30_000))  # 110 kB as a file, 2.7 GB as pixels
BAD = {
    "no file": ("missing.png", "there is no file .*missing.png: give the path of a picture"),
    "text named .jpg": (b"hello, I am a text", "cannot be read as a picture: give a JPEG, PNG"),
    "cut off": ("cut", "is damaged .*: save it again"),
    "bomb": ("bomb", "too many pixels|30000 × 30000 pixels, at most"),
    "floats": (np.zeros((8, 8, 3)), r"an array of float64 \(8, 8, 3\) is no picture: expected"),
    "channels": (np.zeros((8, 8, 2), np.uint8), "is no picture: expected uint8"),
    "empty": (np.zeros((0, 8, 3), np.uint8), "there is nothing to see in it"),
    "no frames": ([], "a video has no frames"),
    "a number": (7, "7 is no picture: expected a PIL image"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_is_refused(case, photo, tmp_path):
    picture, message = BAD[case]
    if case == "no file":
        picture = tmp_path / picture
    elif case == "cut off":
        picture = encoded(photo, "JPEG")[:-200]
    elif case == "bomb":
        picture = encoded(BOMB)
        assert len(picture) < 200_000
    with pytest.raises(UserError, match=message):
        pixels_of(picture, PROCESSOR)


def test_pixels_are_counted_before_they_are_decoded(photo):
    for picture in (photo, encoded(photo), np.asarray(photo)):
        with pytest.raises(UserError, match="40 × 30 pixels, at most 1,000 are taken"):
            pixels_of(picture, PROCESSOR, max_pixels=1000)
