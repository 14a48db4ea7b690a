import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.models.fusion.gated_cross_attention import (
    GatedCrossAttention,
    GatedCrossAttentionConfig,
    Images,
)
from flamingo_jax.ops import grouped_attention as blocks_of
from flamingo_jax.ops.grouped_attention import (
    group_queries_by_image,
    image_blocks,
    num_places,
    ungroup_queries,
)

IMAGES = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks_of, "SIZE", 4)


@given(
    st.lists(st.lists(st.integers(-1, IMAGES), min_size=20, max_size=20), min_size=1, max_size=3)
)
def test_every_token_has_a_place_that_sees_its_image(rows):
    """Images in any order, none (−1), and more than there are."""
    visible = np.array(rows)
    places = num_places(20, IMAGES)
    blocks = image_blocks(jnp.asarray(visible), IMAGES, places)
    assert blocks.image_BN.shape == (len(rows), places // 4)
    for row, seen in enumerate(visible):
        place = np.asarray(blocks.place_BL[row])
        assert len(set(place.tolist())) == 20
        assert place.max() < places
        expected = np.clip(seen, 0, IMAGES - 1)
        assert np.asarray(blocks.image_BN[row])[place // 4].tolist() == expected.tolist()
        filled = np.asarray(blocks.filled_BS[row])
        assert np.flatnonzero(filled).tolist() == sorted(place.tolist())
        assert np.asarray(blocks.token_BS[row])[place].tolist() == list(range(20))


@given(st.integers(1, 600), st.integers(1, 40))
def test_slots_suffice_for_the_worst_text(length, images):
    """One token for each image but the last is what wastes most slots."""
    places = num_places(length, images)
    if places is None:
        return
    size = min(blocks_of.SIZE, length)
    counts = np.ones(min(images, length), int)
    counts[-1] += length - counts.sum()
    assert (-(-counts // size)).sum() * size <= places <= length * images / 2


def test_moves_and_their_gradients(rng):
    visible = jnp.asarray(np.sort(rng.integers(-1, IMAGES, (2, 20)), axis=1))
    blocks = image_blocks(visible, IMAGES, num_places(20, IMAGES))
    x = jnp.asarray(rng.normal(size=(2, 20, 3)), jnp.float32)
    np.testing.assert_array_equal(ungroup_queries(group_queries_by_image(x, blocks), blocks), x)
    weights = jnp.asarray(rng.normal(size=(2, 20, 3)), jnp.float32)

    def moved(x):
        return jnp.sum(
            weights * ungroup_queries(jnp.sin(group_queries_by_image(x, blocks)), blocks)
        )

    np.testing.assert_allclose(jax.grad(moved)(x), weights * jnp.cos(x), rtol=1e-5)


@pytest.fixture(scope="module")
def layer():
    from flax import nnx

    config = GatedCrossAttentionConfig(num_heads=2, head_dim=8, gate_init=0.7)
    return GatedCrossAttention(config, 16, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))


def run(layer, text, media, visible):
    """The output, and the gradients of everything."""

    def loss(layer_and_inputs):
        return jnp.sum(jnp.cos(look(*layer_and_inputs, visible)))

    gradients = jax.jit(jax.grad(loss))((layer, text, media))
    return jax.tree.leaves((look(layer, text, media, visible), gradients))


def look(layer, text, media, visible):
    images = Images((media,), (visible,), uniform_beyond=False, keep=False)
    return layer(text.reshape(-1, 16), images)[0]


def test_blocks_attend_as_masking_does(layer, rng, monkeypatch):
    text = jnp.asarray(rng.normal(size=(3, 20, 16)), jnp.float32)
    media = jnp.asarray(rng.normal(size=(3, IMAGES, 3, 16)), jnp.float32)
    visible = jnp.asarray(rng.integers(-1, IMAGES + 1, (3, 20)))
    assert num_places(20, IMAGES) == 32
    by_block = run(layer, text, media, visible)
    monkeypatch.setattr(blocks_of, "num_places", lambda *_: None)
    for found, expected in zip(by_block, run(layer, text, media, visible), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_token_attends_to_one_image(layer, rng):
    """As in decoding: the work does not grow with the images."""

    def flops(images):
        seen = Images((), (jnp.zeros((1, 1), jnp.int32),), uniform_beyond=False, keep=False)
        keys_values = [(jnp.zeros((1, 2, images, 3, 8)), jnp.zeros((1, 2, images, 3, 8)))]
        block = jax.jit(lambda x, kv: layer(x, seen, kv)[0])
        return block.lower(jnp.zeros((1, 16)), keys_values).compile().cost_analysis()["flops"]

    assert flops(16) < 1.1 * flops(2)
