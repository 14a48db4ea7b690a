import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.models.connectors.perceiver import PerceiverConfig, PerceiverResampler
from flamingo_jax.models.vision.clip import (
    CLIP_MEAN,
    CLIP_STD,
    ClipVisionConfig,
    VisionTransformer,
    normalize,
)
from tests.conftest import random_images


def resampler(**sizes):
    """(B, T, F, P, D) → (B, T, R, D)."""
    config = PerceiverConfig(num_layers=2, num_latents=3, num_heads=2, head_dim=4, **sizes)
    model = PerceiverResampler(config, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    return lambda x: model(model.inputs(x)).reshape(*x.shape[:2], 3, 8)


def test_uint8_images_are_normalised_as_clip_does(rng):
    images = random_images(rng, 2)
    expected = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(normalize(jnp.asarray(images)), expected, atol=1e-6)
    np.testing.assert_array_equal(normalize(jnp.asarray(expected)), jnp.asarray(expected))


def test_patch_tokens_exclude_the_class_token_and_the_last_norm(rng):
    config = ClipVisionConfig(
        width=16, num_layers=1, num_heads=2, image_size=8, patch_size=4, projection_width=6
    )
    vision = VisionTransformer(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    images = jnp.asarray(random_images(rng, 3))
    before = vision(images)
    assert before.shape == (3, 4, 16)
    assert vision.pooled(images).shape == (3, 6)
    vision.post_norm.scale[...] = vision.post_norm.scale[...] * 2
    np.testing.assert_array_equal(vision(images), before)


def test_pooled_needs_a_projection(small, rng):
    with pytest.raises(ValueError, match="projection_width"):
        small[2].vision.pooled(jnp.asarray(random_images(rng, 1)))


def test_a_video_gives_as_many_latents_as_a_still(rng):
    model = resampler(max_frames=4)
    for frames in (1, 4):
        patches = jnp.asarray(rng.normal(size=(2, 3, frames, 5, 8)), jnp.float32)
        assert model(patches).shape == (2, 3, 3, 8)


@pytest.mark.parametrize(("sizes", "axis"), [({"max_frames": 3}, 2), ({"max_media": 3}, 1)])
def test_order_counts_only_with_an_embedding(rng, sizes, axis):
    """Without embeddings frames are a set; with them, they are a sequence. Likewise images."""
    patches = jnp.asarray(rng.normal(size=(1, 3, 3, 5, 8)), jnp.float32)
    reverse = jnp.flip(patches, axis)

    def same(model) -> bool:
        turned = model(reverse)
        return np.allclose(model(patches), turned if axis == 2 else turned[:, ::-1], atol=1e-5)

    assert same(resampler())
    assert not same(resampler(**sizes))


def test_more_frames_than_embeddings_are_refused(rng):
    patches = jnp.zeros((1, 1, 3, 5, 8))
    with pytest.raises(ValueError, match=r"3 frames given.*raise connector\.max_frames"):
        resampler(max_frames=2)(patches)


def test_more_images_than_embeddings_are_refused():
    config = PerceiverConfig(max_media=2)
    config.check_images(2)
    with pytest.raises(ValueError, match=r"3 media given.*raise connector\.max_media"):
        config.check_images(3)


def test_images_of_a_row_do_not_see_each_other(rng):
    model = resampler()
    patches = jnp.asarray(rng.normal(size=(1, 2, 1, 5, 8)), jnp.float32)
    changed = model(patches.at[:, 1].add(1.0))
    np.testing.assert_array_equal(changed[:, 0], model(patches)[:, 0])
