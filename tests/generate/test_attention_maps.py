import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.data import digits
from flamingo_jax.errors import UserError
from flamingo_jax.generate import attention_maps as maps_of
from flamingo_jax.generate.attention_maps import attention_maps
from flamingo_jax.models.fusion.cross_attention import visible_image

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
    segments = jnp.ones_like(tokens)
    visible = visible_image(tokens, model.config.image_token, segments)
    media = model.encode_images(prompt.media_TFHWC[None])
    x = model.decoder.embed(tokens, segments)
    block = maps_of._layer(model.cross_attention, 0)
    weights = np.asarray(maps_of._latent_weights(block, x, media, visible))[0]
    keys_values = block.keys_values(media)
    values = np.asarray(keys_values[1])[0]  # (H, T, R, K)
    queries = block.query(block.norm(x))
    expected = np.asarray(block._attend(queries, keys_values, visible, visible >= 0))[0]
    for place in range(1, tokens.shape[1]):
        seen = values[:, int(visible[0, place])]
        heads = np.einsum("hr,hrk->hk", weights[:, place], seen).reshape(-1)
        np.testing.assert_allclose(heads, expected[place], atol=1e-5)


def test_the_layers_run_as_in_the_model(flamingo):
    """The last block's input, seen by a scan and by the loop."""
    model = flamingo.graph.merge(flamingo.params)
    prompt = flamingo.read(PROMPT)
    tokens, segments = jnp.asarray(prompt.tokens_L[None]), jnp.ones((1, 7), jnp.int32)
    seen = []
    maps_of._run_layers(model, tokens, segments, lambda _, x: seen.append(x) or x + 1)
    own = []
    first, second = (maps_of._layer(stack, 0) for stack in model.decoder.layers)
    context = model.decoder.context(segments)
    own = first(model.decoder.embed(tokens, segments), context)
    np.testing.assert_allclose(seen[0], own, atol=1e-6)
    assert len(seen) == 1
    assert second is not None


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
