import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.models.fusion.gated_cross_attention import Images
from flamingo_jax.models.text import visible_image

IMAGE = 9


def naive_visible(tokens, segments):
    """Which image each position sees, said as plainly as possible."""
    images_so_far, current, visible = 0, -1, []
    for i, (token, segment) in enumerate(zip(tokens, segments, strict=True)):
        if i == 0 or segment != segments[i - 1]:
            current = -1
        if token == IMAGE and segment:
            current = images_so_far
            images_so_far += 1
        visible.append(current if segment else -1)
    return visible


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, IMAGE]), st.integers(0, 2)), min_size=1, max_size=10)
)
def test_visible_image_is_the_last_one_of_the_segment(row):
    tokens, segments = zip(*row, strict=True)
    got = visible_image(jnp.array([tokens]), IMAGE, jnp.array([segments]))
    assert got[0].tolist() == naive_visible(tokens, segments)


def test_visible_image_of_padded_rows():
    tokens = jnp.array([[0, 0, 1, IMAGE, 2, IMAGE, 3]])
    segments = jnp.array([[0, 0, 1, 1, 1, 1, 1]])
    assert visible_image(tokens, IMAGE, segments)[0].tolist() == [-1, -1, -1, 0, 0, 1, 1]


def test_packed_segments_keep_their_images_apart():
    tokens = jnp.array([[IMAGE, 1, 2, IMAGE, 3]])
    segments = jnp.array([[1, 1, 2, 2, 2]])
    assert visible_image(tokens, IMAGE, segments)[0].tolist() == [0, 0, -1, 1, 1]


def look(layer, text, media, visible):
    """One text through a block."""
    images = Images((media,), (visible,), uniform_beyond=False, keep=False)
    return layer(text[0], images)[0][None]


def test_a_text_sees_its_own_image_only(small, rng):
    """Perturbing an image changes the text that sees it, and nothing else, exactly."""
    layer = jax.tree.map(lambda x: x[0], small[2].cross_attention)
    text = jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32)
    media = jnp.asarray(rng.normal(size=(1, 2, 3, 16)), jnp.float32)
    visible = jnp.array([[-1, 0, 0, 1, 1]])
    before = look(layer, text, media, visible)
    after = look(layer, text, media.at[:, 1].add(1.0), visible)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before - after)[:, 3:].max(axis=-1) > 1e-3).all()


def test_text_without_an_image_gets_exactly_nothing(small, rng):
    layer = jax.tree.map(lambda x: x[0], small[2].cross_attention)
    text = jnp.asarray(rng.normal(size=(1, 4, 16)), jnp.float32)
    media = jnp.asarray(rng.normal(size=(1, 2, 3, 16)), jnp.float32)
    out = look(layer, text, media, jnp.array([[-1, -1, 0, 2]]))
    np.testing.assert_array_equal(out[0, [0, 1, 3]], text[0, [0, 1, 3]])
    assert np.abs(out[0, 2] - text[0, 2]).max() > 1e-3
