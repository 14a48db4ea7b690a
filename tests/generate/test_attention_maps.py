import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.data import digits
from flamingo_jax.errors import UserError
from flamingo_jax.generate import attention_maps as maps_of
from flamingo_jax.generate.attention_maps import attention_maps

SCANS = digits.scans("held_out")[0]
PROMPT = ["zero", SCANS[0], "dax", SCANS[1], "a handwritten"]


@pytest.fixture(scope="module")
def maps(flamingo):
    return attention_maps(flamingo, PROMPT)


def test_each_look_falls_on_the_token_s_own_picture(maps, flamingo):
    # zero <image> dax <|endofchunk|> <image> a handwritten
    assert maps.visible_L.tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert maps.tokens[1:3] == ("<image>", "dax")
    assert maps.latents_CHLR.shape == (1, 2, 7, 2)
    np.testing.assert_allclose(maps.latents_CHLR.sum(axis=-1)[..., 1:], 1, rtol=1e-5)
    assert not maps.latents_CHLR[:, :, 0].any()
    np.testing.assert_allclose(maps.patches_TRFhw.sum(axis=(2, 3, 4)), 1, rtol=1e-5)
    assert maps.of_token(2).shape == (1, 2, 2)
    assert maps.of_token(5, block=0).sum() == pytest.approx(1)
    with pytest.raises(UserError, match=r"token 0 \('zero'\) sees no picture"):
        maps.of_token(0)


def test_the_weights_are_those_of_the_model(flamingo):
    """Values weighed by them are what the block adds."""
    model = flamingo.graph.merge(flamingo.params)
    prompt = flamingo.read(PROMPT)
    tokens = jnp.asarray(prompt.tokens_L[None])
    vectors = model.image_vectors(prompt.media_TFHWC[None])
    x_ND, _, images = model.read([vectors], [tokens], [jnp.ones_like(tokens)])
    block = next(layer.inserted for layer in model.layers.unstacked() if layer.inserted)
    weights = np.asarray(maps_of._latent_weights(block, x_ND[None], images))[0]
    keys_values = images.keys_values(block.key, block.value, block.config.head_dim)
    values = np.asarray(keys_values[0][1])[0]  # (H, T, R, K)
    queries = block.query(block.norm(x_ND)).reshape(len(x_ND), -1, block.config.head_dim)
    expected = np.asarray(images.attend(queries, keys_values)[0])
    visible = images.visible[0][0]
    for place in range(1, tokens.shape[1]):
        seen = values[:, int(visible[place])]
        heads = np.einsum("hr,hrk->hk", weights[:, place], seen).reshape(-1)
        np.testing.assert_allclose(heads, expected[place], atol=1e-5)


def test_layers_run_one_by_one_as_they_are_scanned(flamingo):
    model = flamingo.graph.merge(flamingo.params)
    prompt = flamingo.read(PROMPT)
    tokens = jnp.asarray(prompt.tokens_L[None])
    vectors = model.image_vectors(prompt.media_TFHWC[None])
    given = model.read([vectors], [tokens], [jnp.ones_like(tokens)])
    seen = []
    layers = model.layers.unstacked()
    apart, _ = model.layers.run(
        *given, layers=layers, watch=lambda layer, x: seen.append((layer, x))
    )
    np.testing.assert_allclose(apart, model.layers.run(*given)[0], atol=1e-6)
    assert [layer for layer, _ in seen] == layers
    np.testing.assert_array_equal(seen[0][1], given[0])


def test_another_picture_moves_the_look_at_it_only(maps, flamingo):
    other = attention_maps(flamingo, ["zero", SCANS[0], "dax", SCANS[5], "a handwritten"])
    np.testing.assert_array_equal(other.patches_TRFhw[0], maps.patches_TRFhw[0])
    np.testing.assert_array_equal(other.latents_CHLR[:, :, :4], maps.latents_CHLR[:, :, :4])
    assert (other.patches_TRFhw[1] != maps.patches_TRFhw[1]).any()


def test_a_video_has_maps_of_each_frame(flamingo):
    maps = attention_maps(flamingo, [list(SCANS[:3]), "dax"])
    assert maps.of_token(1).shape == (3, 2, 2)
    with pytest.raises(UserError, match="has no picture to look at"):
        attention_maps(flamingo, "zero")
