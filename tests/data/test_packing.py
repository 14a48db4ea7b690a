import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.documents import Document
from flamingo_jax.data.examples import ExampleMaker
from flamingo_jax.data.packing import Packing, pack
from flamingo_jax.data.pipeline import StepSource, StreamConfig, make_streams
from flamingo_jax.data.tokenizer import load_tokenizer
from flamingo_jax.models.loss import weighted_nll
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
            found.append(Document("x", ("dax", image, text, image // 2, "wug"), "interleaved"))
        else:
            found.append(Document("x", (image, text), "pair"))
    return found


def test_documents_stand_one_after_the_other(maker, rng):
    examples = [maker(document) for document in documents(rng, 3)]
    row = pack(examples, Packing(documents=4, text_length=30), maker.tokens.image)
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


@given(st.integers(1, 60), st.integers(1, 8))
def test_rows_of_any_length_are_consistent(length, count):
    tokens = load_tokenizer("digits", 40)
    maker = ExampleMaker(tokens, 12, 2, 8)
    examples = [maker(document) for document in documents(np.random.default_rng(0), count)]
    row = pack(examples, Packing(documents=count, text_length=length), tokens.image)
    padding = row["segments"] == 0
    assert not row["tokens"][padding].any()
    assert not row["weights"][padding].any()
    assert row["weights"].sum() <= sum(e["weights"][1:].sum() for e in examples)
    used = (row["tokens"] == tokens.image).sum()
    assert row["images"][:used].any(axis=(1, 2, 3, 4)).all()
    assert not row["images"][used:].any()


def test_the_summed_loss_is_that_of_the_unpacked_batch(small, rng):
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
    packing = Packing(documents=3, text_length=30)
    rows = [pack(examples[i : i + 3], packing, IMAGE) for i in range(0, 9, 3)]

    def summed(examples):
        batch = {name: jnp.stack([e[name] for e in examples]) for name in examples[0]}
        logits = model(batch["images"], batch["tokens"], batch["segments"])
        return weighted_nll(logits, batch["tokens"], batch["weights"])

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(summed(rows), summed(examples), rtol=2e-6)


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
