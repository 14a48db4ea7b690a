import numpy as np
import pytest
from PIL import Image

from flamingo_jax.errors import UserError
from flamingo_jax.similarity.retrieval import damaged, image_features, top_k


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def plain(query: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    products = query.astype(np.float64) @ features.astype(np.float64).T
    return np.argsort(-products, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("chunk", [1, 50, 64, 1000])
def test_finds_what_a_full_sort_finds(rng, tmp_path, dtype, chunk):
    features = unit(rng.normal(size=(300, 16))).astype(dtype)
    query = unit(rng.normal(size=(7, 16)))
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    found = top_k(query, mapped, 5, chunk=chunk)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, plain(query, features, 5))


def test_equal_rows_come_in_order(rng):
    """More equal rows than candidates are kept, over several chunks."""
    features = unit(np.repeat(rng.normal(size=(3, 8)), 200, axis=0))[rng.permutation(600)]
    query = unit(rng.normal(size=(4, 8)))
    found = top_k(query, features, 250, chunk=100)
    products = np.stack([[np.dot(q, f) for f in features.astype(np.float64)] for q in query])
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1, kind="stable")[:, :250])


def test_near_equals_are_ordered_exactly(rng):
    """Rows that differ by less than float32 products can tell."""
    base = unit(rng.normal(size=64))
    features = base + 1e-6 * rng.normal(size=(500, 64)).astype(np.float32)
    query = unit(rng.normal(size=(5, 64)))
    np.testing.assert_array_equal(top_k(query, features, 10, chunk=64), plain(query, features, 10))


def test_all_rows_may_be_asked_for(rng):
    features, query = unit(rng.normal(size=(6, 4))), unit(rng.normal(size=(2, 4)))
    np.testing.assert_array_equal(top_k(query, features, 6), plain(query, features, 6))


def test_impossible_searches_are_refused(rng):
    features, query = unit(rng.normal(size=(6, 4))), unit(rng.normal(size=(2, 4)))
    with pytest.raises(UserError, match="7 most similar of 6"):
        top_k(query, features, 7)
    with pytest.raises(UserError, match="4 features, the images 3"):
        top_k(query, features[:, :3], 2)
    features[3, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        top_k(query, features, 2)


class MeanColour:
    """An encoder whose feature is the mean colour; it counts what it was given."""

    def __init__(self, fingerprint: str = "weights"):
        self.fingerprint, self.encoded = fingerprint, 0

    def encode_images(self, images) -> np.ndarray:
        self.encoded += len(images)
        return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])


def colour(name: str) -> Image.Image:
    return Image.new("RGB", (4, 4), name)


NAMES = ["red", "green", "blue", "navy", "pink"]


def test_features_are_kept(tmp_path):
    encoder = MeanColour()
    first = image_features(encoder, NAMES, colour, tmp_path, batch_size=2)
    assert encoder.encoded == len(NAMES)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    again = image_features(encoder, NAMES, lambda name: pytest.fail(name), tmp_path)
    np.testing.assert_array_equal(first, again)
    assert [NAMES[i] for i in top_k(first[2:3], again, 2)[0]] == ["blue", "navy"]


def test_other_weights_or_images_are_encoded_anew(tmp_path):
    encoder = MeanColour()
    image_features(encoder, NAMES, colour, tmp_path)
    image_features(encoder, NAMES[::-1], colour, tmp_path)
    image_features(MeanColour("other"), NAMES, colour, tmp_path)
    assert encoder.encoded == 2 * len(NAMES)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_interrupted_encoding_leaves_nothing_to_find(tmp_path):
    def broken(name: str) -> Image.Image:
        if name == "blue":
            raise UserError("missing image")
        return colour(name)

    with pytest.raises(UserError, match="missing"):
        image_features(MeanColour(), NAMES, broken, tmp_path, batch_size=1)
    encoder = MeanColour()
    assert len(image_features(encoder, NAMES, colour, tmp_path)) == encoder.encoded == len(NAMES)


def test_damaged_images_have_zeros_and_are_tried_again(tmp_path):
    encoder, tried = MeanColour(), []

    def load(name: str) -> Image.Image | None:
        tried.append(name)
        return None if name in ("red", "green", "pink") else colour(name)

    for _ in range(2):
        found = image_features(encoder, NAMES, load, tmp_path, batch_size=2)
        assert damaged(found) == [0, 1, 4]
        np.testing.assert_allclose(np.linalg.norm(found[2:4], axis=1), 1, rtol=1e-6)
    assert encoder.encoded == 2
    assert tried == [*NAMES, "red", "green", "pink"]
    assert not damaged(image_features(encoder, NAMES, colour, tmp_path))


def test_nothing_to_encode_is_said(tmp_path):
    with pytest.raises(UserError, match="no images"):
        image_features(MeanColour(), [], colour, tmp_path)
    with pytest.raises(UserError, match="not one of 5 images can be read"):
        image_features(MeanColour(), NAMES, lambda name: None, tmp_path)
