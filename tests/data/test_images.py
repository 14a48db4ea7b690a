import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from flamingo_jax.data import images
from flamingo_jax.data.images import decode_image
from flamingo_jax.data.records import BadRecordError
from tests import golden_root

from .corpora import picture

PIXELS = "openflamingo/data/preprocess.npz"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalised(pixels):
    """What CLIP's preprocessing gives: float (3, H, W)."""
    return ((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def encoded(pixels, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@golden_root.needs(PIXELS)
def test_pixels_are_the_golden_ones():
    golden = np.load(golden_root.ROOT / PIXELS)
    for index, expected in enumerate(golden["rawimg/out_noflip"]):
        got = decode_image(encoded(golden[f"rawimg/{index}"]), expected.shape[-1])
        np.testing.assert_allclose(normalised(got), expected, atol=2e-6)


@given(st.integers(16, 90), st.integers(16, 90), st.integers(8, 40))
def test_exact_is_one_resize_and_a_crop(width, height, size):
    image = Image.open(io.BytesIO(picture(width * height, width, height)))
    shortest = min(width, height)
    resized = image.resize((size * width // shortest, size * height // shortest), Image.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized.size)
    expected = resized.crop((left, top, left + size, top + size))
    np.testing.assert_array_equal(images.resize_and_crop(image, size), expected)


def test_fast_is_close():
    data = picture(0, 1024, 768)
    exact, fast = (decode_image(data, 224, mode).astype(int) for mode in ("exact", "fast"))
    assert np.abs(exact - fast).mean() < 1
    assert np.abs(exact - fast).max() < 16


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("size", [(3000, 4), (4, 3000), (1, 1), (1, 60_000)])
def test_extreme_shapes_cost_no_memory(decode, size):
    data = encoded(np.full((size[1], size[0], 3), 100, np.uint8))
    tracemalloc.start()
    pixels = decode_image(data, 224, decode)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(pixels, np.full((224, 224, 3), 100))
    assert peak < 4e6


def test_extreme_shapes_show_their_middle():
    strip = np.zeros((4, 3000, 3), np.uint8)
    strip[:, 1490:1510] = 200
    pixels = decode_image(encoded(strip), 224)
    assert (pixels == 200).all()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("WEBP", "RGB")],
)
def test_every_mode_becomes_rgb(kind, mode):
    pixels = decode_image(picture(1, kind=kind, mode=mode), 24)
    assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)
    assert pixels.std() > 5


def test_sixteen_bits_and_transparent_palettes():
    assert decode_image(encoded(np.full((9, 9), 40_000, np.uint16)), 8).shape == (8, 8, 3)
    file = io.BytesIO()
    palette = Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9)).convert("P")
    palette.save(file, "PNG", transparency=bytes(range(81)))
    assert decode_image(file.getvalue(), 8).shape == (8, 8, 3)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "green")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(file.getvalue(), 8)[0, 0], (255, 0, 0))


def test_damage_is_a_bad_record(monkeypatch):
    whole = picture(2)
    for data in (b"", b"hello", whole[:300], whole[:-40], encoded(np.eye(9, dtype=bool))[:60]):
        with pytest.raises(BadRecordError, match="image cannot be decoded"):
            decode_image(data, 8)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(BadRecordError, match=r"image of \(40, 32\) pixels is above 100"):
        decode_image(whole, 8)


def test_pillows_own_limit_is_a_bad_record(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadRecordError, match="DecompressionBomb"):
        decode_image(picture(2), 8)


@pytest.fixture
def upright(rng):
    return Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))


def noted(image, note, kind="PNG") -> bytes:
    """An image file with a camera's note of how to turn it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    return encoded(np.asarray(image), kind, exif=exif)


@pytest.mark.parametrize(
    ("note", "stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_photo_is_turned_by_its_note(upright, note, stored, decode):
    turned = upright if stored is None else upright.transpose(stored)
    for kind in ("PNG", "TIFF"):
        found = decode_image(noted(turned, note, kind), 8, decode)
        np.testing.assert_array_equal(found, decode_image(encoded(np.asarray(upright)), 8, decode))


def test_a_large_phone_photo_is_turned_where_the_decoder_shrinks_it():
    photo = Image.open(io.BytesIO(picture(0, 1024, 768)))
    stored = noted(photo.transpose(Image.Transpose.ROTATE_90), 6, "JPEG")
    exact, fast = (decode_image(stored, 224, mode).astype(int) for mode in ("exact", "fast"))
    expected = decode_image(encoded(np.asarray(photo), "JPEG"), 224).astype(int)
    assert np.abs(exact - expected).mean() < 1
    assert np.abs(fast - expected).mean() < 1


def test_a_damaged_note_turns_nothing(upright):
    plain = encoded(np.asarray(upright))
    damaged = encoded(np.asarray(upright), exif=b"Exif\0\0II*\0no note at all")
    np.testing.assert_array_equal(decode_image(damaged, 8), decode_image(plain, 8))
