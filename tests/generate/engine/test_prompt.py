"""Text that continues a prompt, token by token, is the same text run whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.generate.engine.prompt import (
    empty_cache,
    extend,
    extend_packed,
    last_images_only,
    prefill,
)
from flamingo_jax.models.params import model_graph
from tests.conftest import IMAGE, VOCAB, random_images, random_params, small_config
from tests.models.test_decoder import FAMILIES

LENGTH, NEW, WIDTH = 7, 5, 2
TOLERANCE = 2e-5
SETTINGS = {
    **{name: (family, {}) for name, family in FAMILIES.items()},
    "openflamingo": (FAMILIES["mpt"], {"feed_forward_everywhere": True}),
    "grouped": ({"num_kv_heads": 1}, {}),
    "interval_of_all": ({}, {"interval": 5}),
}


def build(family, cross):
    config = small_config(**{**family, "num_heads": 2, "max_length": 16})
    if family.get("num_kv_heads", 2) == 2:
        config = dataclasses.replace(
            config, decoder=dataclasses.replace(config.decoder, num_kv_heads=0)
        )
    config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, **cross))
    return model_graph(config).merge(random_params(config))


@pytest.fixture(scope="module", params=SETTINGS)
def model(request):
    return build(*SETTINGS[request.param])


@pytest.fixture(scope="module")
def rows():
    """Three prompts of unequal length and images, and two continuations of each. A new mark has an
    image in row 0, none in row 1; row 2 has no images at all."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (3, LENGTH))
    segments = np.ones_like(tokens)
    segments[1, :3] = segments[2, :5] = 0
    tokens[0, [1, 4]] = tokens[1, 3] = IMAGE
    tokens[1, 1] = IMAGE  # in the padding: no mark
    new = rng.integers(0, VOCAB, (3, WIDTH, NEW))
    new[0, 0, 2] = new[1, 1, 1] = new[2, 0, 3] = IMAGE
    return random_images(rng, 3, 3, 1), tokens, segments, np.array([3, 1, 0]), new


def whole(model, rows):
    """Logits of every continuation, each run alone in one forward pass with its own images."""
    images, tokens, segments, num_images, new = rows

    @jax.jit
    def forward(images, text):
        return model(images, text)

    logits = np.zeros((3, WIDTH, NEW + 1, model.config.decoder.total_vocab_size))
    for row in range(3):
        for w in range(WIDTH):
            text = np.concatenate([tokens[row][segments[row] == 1], new[row, w]])[None]
            logits[row, w] = forward(images[row, None, : num_images[row]], text)[0, -NEW - 1 :]
    return logits


@pytest.mark.parametrize("at_once", [1, 3, NEW])
def test_incremental_decoding_is_the_full_forward(model, rows, at_once):
    images, tokens, segments, num_images, new = map(jnp.asarray, rows)
    expected = whole(model, rows)
    prompt = jax.jit(lambda *inputs: prefill(model, *inputs))(images, tokens, segments, num_images)
    np.testing.assert_allclose(prompt.logits_BV, expected[:, 0, 0], atol=TOLERANCE)

    @jax.jit
    def step(cache, start):
        return extend(model, prompt, new, cache, start=start, length=at_once)

    cache = empty_cache(model.decoder, 3 * WIDTH, NEW)
    for start in range(0, NEW - at_once + 1, at_once):
        logits, cache = step(cache, start)
        wanted = expected[:, :, start + 1 : start + 1 + at_once]
        np.testing.assert_allclose(logits, wanted, atol=TOLERANCE)
    if at_once == NEW:
        kept_nothing, no_cache = jax.jit(lambda: extend(model, prompt, new))()
        np.testing.assert_allclose(kept_nothing, expected[:, :, 1:], atol=TOLERANCE)
        assert no_cache is None


def test_packed_continuations_are_those_run_apart(model, rows):
    """A new mark in the first of them; lengths 4 and 3, behind one another."""
    images, tokens, segments, num_images, new = map(jnp.asarray, rows)
    lengths = (4, 3)

    @jax.jit
    def run():
        prompt = prefill(model, images, tokens, segments, num_images)
        apart, _ = extend(model, prompt, jnp.broadcast_to(new[0], new.shape))
        text = jnp.concatenate([new[0, w, :n] for w, n in enumerate(lengths)])
        places = jnp.concatenate([jnp.arange(n) for n in lengths])
        owners = jnp.repeat(jnp.arange(2), jnp.array(lengths), total_repeat_length=sum(lengths))
        return apart, extend_packed(model, prompt, text, places, owners)

    apart, packed = run()
    expected = np.concatenate([apart[:, w, :n] for w, n in enumerate(lengths)], axis=1)
    np.testing.assert_allclose(packed, expected, atol=TOLERANCE)


def test_the_last_images_are_enough_for_text_that_shows_no_other(model, rows):
    """A new mark that has no image is text that shows none; only row 0 has an image left."""
    images, tokens, segments, num_images, new = map(jnp.asarray, rows)
    prompt = jax.jit(lambda *inputs: prefill(model, *inputs))(images, tokens, segments, num_images)
    narrow = last_images_only(prompt)
    assert (prompt.num_slots, narrow.num_slots) == (3, 1)
    logits_of = jax.jit(lambda prompt: extend(model, prompt, new)[0])
    expected, made = np.array(logits_of(prompt)), np.array(logits_of(narrow))
    shown = np.zeros(expected.shape[:3], bool)
    shown[0, 0, 2:] = True  # row 0's third image
    np.testing.assert_allclose(made[~shown], expected[~shown], atol=TOLERANCE)
    assert np.abs(made - expected)[shown].max() > 1e-4


def test_an_image_that_a_row_cannot_see_changes_nothing(rows):
    """Not the slots beyond a row's images, not another row's images, not the first image of two."""
    model = build(FAMILIES["llama"], {})
    images, tokens, segments, num_images, new = map(jnp.asarray, rows)

    @jax.jit
    def run(images):
        prompt = prefill(model, images, tokens, segments, num_images)
        return prompt.logits_BV, extend(model, prompt, new)[0]

    before = run(images)
    unseen = run(images.at[1, 1:].set(7).at[2].set(9))
    for x, y in zip(before, unseen, strict=True):
        np.testing.assert_array_equal(x, y)
    other_row = run(images.at[0].set(5))
    for x, y in zip(before, other_row, strict=True):
        np.testing.assert_array_equal(x[1:], y[1:])
        assert np.abs(x[0] - y[0]).max() > 1e-4
    third = run(images.at[0, 2].set(5))
    np.testing.assert_array_equal(before[0], third[0])
    np.testing.assert_array_equal(before[1][0, :, :2], third[1][0, :, :2])
    assert np.abs(before[1][0, 0, 2] - third[1][0, 0, 2]).max() > 1e-4
