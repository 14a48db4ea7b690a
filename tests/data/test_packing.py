import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.data.packing import Packing, pack
from flamingo_jax.data.pipeline import StepSource, StreamConfig, make_streams
from flamingo_jax.ops.cross_entropy import weighted_nll
from flamingo_jax.text.documents import captioned, interleaved
from flamingo_jax.text.tokenizer import load_tokenizer
from tests.conftest import IMAGE, VOCAB, random_images

WORDS = ("dax", "wug", "toma", "zorp", "fep")


@pytest.fixture(scope="module")
def maker():
    return ExampleMaker(load_tokenizer("digits", 40), 12, 2, 8)


def documents(rng, count):
    found = []
    for n in range(count):
        image = rng.integers(1, 256, (8, 8, 3), dtype=np.uint8)
        text = " ".join(WORDS[: 1 + n % 5])
        if n % 3 == 2:
            found.append(interleaved("x", ("dax", image, text, image // 2, "wug")))
        else:
            found.append(captioned("x", (image, text)))
    return found


def test_documents_stand_one_after_the_other(maker, rng):
    examples = [maker(document) for document in documents(rng, 3)]
    row = pack(examples, Packing(documents=4, text_length=30), maker.tokens.special.image)
    lengths = [(example["segments"] != 0).sum() for example in examples]
    assert row["segments"].tolist()[: sum(lengths)] == np.repeat([1, 2, 3], lengths).tolist()
    assert not row["segments"][sum(lengths) :].any()
    texts = np.split(row["tokens"][: sum(lengths)], np.cumsum(lengths)[:-1])
    for text, example, length in zip(texts, examples, lengths, strict=True):
        np.testing.assert_array_equal(text, example["tokens"][:length])
    assert row["images"].shape == (8, 1, 8, 8, 3)
    marks = [1, 1, 2]
    expected = [e["images"][i] for e, m in zip(examples, marks, strict=True) for i in range(m)]
    np.testing.assert_array_equal(row["images"][:4], expected)
    assert not row["images"][4:].any()


@given(st.integers(1, 60), st.integers(1, 8), st.none() | st.integers(1, 8), st.integers(1, 3))
def test_rows_of_any_shape_are_consistent(length, count, places, parts):
    tokens = load_tokenizer("digits", 40)
    maker = ExampleMaker(tokens, 12, 2, 8)
    count, length = count * parts, length * parts
    examples = [maker(document) for document in documents(np.random.default_rng(0), count)]
    packing = Packing(documents=count, text_length=length, images=places, parts=parts)
    row = pack(examples, packing, tokens.special.image)
    assert len(row["images"]) == (places or 2 * count)
    owners = [set(part) - {0} for part in np.split(row["segments"], parts)]
    assert sum(map(len, owners)) == len(set.union(*owners)), "a document is in two parts"
    padding = row["segments"] == 0
    assert not row["tokens"][padding].any()
    assert not row["weights"][padding].any()
    assert row["weights"].sum() <= sum(e["weights"][1:].sum() for e in examples)
    used = (row["tokens"] == tokens.special.image).sum()
    assert used <= len(row["images"])
    assert row["images"][:used].any(axis=(1, 2, 3, 4)).all()
    assert not row["images"][used:].any()


def test_a_document_is_cut_before_the_image_that_is_one_too_many(maker, rng):
    examples = [maker(document) for document in documents(rng, 6)]  # 1, 1, 2, 1, 1, 2 images
    image = maker.tokens.special.image
    row = pack(examples, Packing(documents=6, text_length=72, images=3), image)
    whole = pack(examples, Packing(documents=6, text_length=72), image)
    assert whole["segments"].max() == 6
    np.testing.assert_array_equal(row["images"], whole["images"][:3])
    fourth = np.flatnonzero(whole["tokens"] == image)[3]
    for name in ("tokens", "segments", "weights"):
        np.testing.assert_array_equal(row[name][:fourth], whole[name][:fourth], err_msg=name)
        assert not row[name][fourth:].any(), name


def test_parts_begin_where_rows_of_their_own_would(maker, rng):
    examples = [maker(document) for document in documents(rng, 6)]
    image = maker.tokens.special.image
    row = pack(examples, Packing(documents=6, text_length=60, images=9, parts=3), image)
    own = Packing(documents=2, text_length=20)
    alone = [pack(examples[i : i + 2], own, image) for i in (0, 2, 4)]
    for name in ("tokens", "weights"):
        np.testing.assert_array_equal(row[name], np.concatenate([a[name] for a in alone]))
    numbers = [np.where(a["segments"], a["segments"] + 2 * i, 0) for i, a in enumerate(alone)]
    np.testing.assert_array_equal(row["segments"], np.concatenate(numbers))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 0}, "images is 0, it must be at least 1"),
        ({"parts": 0}, "parts is 0, it must be at least 1"),
        ({"parts": 4}, "documents is 6, which parts 4 does not divide"),
        ({"parts": 3, "text_length": 70}, "text_length is 70, which parts 3 does not divide"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Packing(**{"documents": 6, "text_length": 72, **values})


@pytest.mark.parametrize("parts", [1, 3])
def test_the_summed_loss_is_that_of_the_unpacked_batch(small, rng, parts):
    """Also where text stands before the first image, and with weights of any size."""
    _, _, model = small
    examples = []
    for n in range(9):
        length, image_at = 4 + n % 5, (0, 2) if n % 3 else (1, 3)
        tokens = np.zeros(10, np.int32)
        tokens[:length] = rng.integers(0, VOCAB, length)
        tokens[list(image_at)] = IMAGE
        weights = np.zeros(10, np.float32)
        weights[:length] = rng.random(length)
        segments = (np.arange(10) < length).astype(np.int32)
        images = random_images(rng, 2, 1)
        examples.append(
            {"images": images, "tokens": tokens, "segments": segments, "weights": weights}
        )
    packing = Packing(documents=3, text_length=30, images=6, parts=parts)
    rows = [pack(examples[i : i + 3], packing, IMAGE) for i in range(0, 9, 3)]

    def summed(examples, parts):
        batch = {name: jnp.stack([e[name] for e in examples]) for name in examples[0]}
        inputs = model.image_vectors(batch["images"]), batch["tokens"], batch["segments"]
        (text,) = model.hidden_states(*([x] for x in inputs), [parts])
        return weighted_nll(model.decoder.logits(text), batch["tokens"], batch["weights"])

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(summed(rows, parts), summed(examples, 1), rtol=2e-6)


def test_a_packed_stream_has_the_documents_of_the_unpacked_one():
    tokens = load_tokenizer("digits", 40)
    plain = StreamConfig(source="digits_pairs", batch_size=6, text_length=10, num_images=1)
    packed = dataclasses.replace(
        plain, batch_size=2, pack=Packing(documents=3, text_length=30), num_images=1
    )
    one, other = (
        StepSource(make_streams({"x": config}, tokens, 8), 0, 4)[2]["x"]
        for config in (plain, packed)
    )
    assert other["tokens"].shape == (2, 30)
    assert other["images"].shape == (2, 3, 1, 8, 8, 3)
    np.testing.assert_array_equal(
        other["tokens"][other["segments"] != 0], one["tokens"][one["segments"] != 0]
    )
    np.testing.assert_array_equal(other["images"].reshape(one["images"].shape), one["images"])
    assert other["weights"].sum() == one["weights"][:, 1:].sum()
