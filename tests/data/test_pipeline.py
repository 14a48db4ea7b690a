import dataclasses

import jax
import numpy as np
import pytest

from flamingo_jax.data.pipeline import StepSource, StreamConfig, batches, make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import captioned
from flamingo_jax.text.tokenizer import load_tokenizer

CONFIGS = {
    "pairs": StreamConfig(source="digits_pairs", batch_size=3, text_length=10, num_images=1),
    "interleaved": StreamConfig(
        source="digits_documents",
        options={"num_images": 4},
        batch_size=2,
        text_length=14,
        num_images=4,
    ),
}


def source(seed: int = 0, num_steps: int = 12) -> StepSource:
    return StepSource(make_streams(CONFIGS, load_tokenizer("digits", 40), 8), seed, num_steps)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_shapes_of_both_streams():
    batch = source()[0]
    assert {n: a.shape for n, a in batch["pairs"].items()} == {
        "images": (3, 1, 1, 8, 8, 3),
        "tokens": (3, 10),
        "segments": (3, 10),
        "weights": (3, 10),
    }
    assert batch["interleaved"]["images"].shape == (2, 4, 1, 8, 8, 3)


def test_a_resumed_run_reads_what_an_uninterrupted_one_would():
    whole = list(batches(source(), 0))
    rest = list(batches(source(), 7))
    assert len(whole) == 12
    assert len(rest) == 5
    for a, b in zip(whole[7:], rest, strict=True):
        assert_same(a, b)


def test_batches_differ_by_step_seed_and_stream():
    tokens = [source()[0]["pairs"]["images"], source()[1]["pairs"]["images"]]
    tokens += [source(seed=1)[0]["pairs"]["images"]]
    assert len({t.tobytes() for t in tokens}) == 3


def test_unknown_options_name_the_nearest():
    config = dataclasses.replace(CONFIGS["pairs"], source="digits_documents", options={"way": 3})
    with pytest.raises(UserError, match=r"config.streams.x.options.way.*did you mean 'ways'"):
        make_streams({"x": config}, load_tokenizer("digits", 40), 8)


def test_a_mark_without_an_image_names_the_row():
    class Broken:
        def document(self, position, rng):
            text = "dax" if position == 0 else "<image>dax"
            image = np.zeros((8, 8, 3), np.uint8)
            return captioned(f"broken/{position}", (image, text))

    stream = dataclasses.replace(source().streams["pairs"], source=Broken())
    with pytest.raises(UserError, match="'x', step 0: row 1 has 2 <image> tokens but 1 images"):
        next(batches(StepSource({"x": stream}, 0, 1), 0))
