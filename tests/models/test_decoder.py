import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.models.decoder import Decoder, DecoderConfig, alibi_slopes
from flamingo_jax.models.text import segment_positions
from flamingo_jax.ops.attention import causal_mask

FAMILIES = {
    "mpt": {"position": "alibi", "norm_bias": False, "attention_bias": False, "mlp_bias": False},
    "mpt_1b": {"position": "alibi", "qk_norm": True, "attention_bias": False},
    "neox": {"parallel_residual": True, "rotary_fraction": 0.25, "tie_head": False},
    "opt": {"position": "learned", "activation": "relu", "max_length": 16},
    "llama": {
        "norm": "rmsnorm",
        "gated_mlp": True,
        "activation": "silu",
        "num_kv_heads": 2,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_head": False,
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def decoder(request):
    config = DecoderConfig(
        width=32, num_layers=3, num_heads=4, vocab_size=20, **FAMILIES[request.param]
    )
    model = Decoder(config, interval=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    return jax.jit(lambda tokens, segments: model(tokens, segments))


def test_alibi_slopes_of_a_power_of_two():
    np.testing.assert_allclose(alibi_slopes(8), 0.5 ** np.arange(1, 9), rtol=1e-6)


def test_alibi_slopes_between_powers_of_two():
    """Six heads take the slopes of eight: the second, fourth, … first (transformers' MPT)."""
    expected = 0.5 ** np.array([2, 4, 6, 8, 1, 3])
    np.testing.assert_allclose(alibi_slopes(6), expected, rtol=1e-6)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_segment_positions_count_from_the_start_of_each_run(segments):
    expected, count = [], 0
    for i, segment in enumerate(segments):
        count = count + 1 if i and segment == segments[i - 1] else 0
        expected.append(count)
    with jax.disable_jit():
        assert segment_positions(jnp.array([segments]))[0].tolist() == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_causal_mask_is_causal_within_segments_and_never_empty(segments):
    mask = np.asarray(causal_mask(jnp.array([segments]))[0, 0])
    for i in range(len(segments)):
        for j in range(len(segments)):
            assert mask[i, j] == (j <= i and segments[i] == segments[j])
    assert mask.any(axis=1).all()


def test_padding_changes_nothing(decoder, rng):
    tokens = rng.integers(0, 20, (1, 6))
    alone = decoder(tokens, np.ones((1, 6), int))
    for left in (0, 3):
        padded = np.zeros((1, 9), int)
        padded[:, left : left + 6] = tokens
        segments = np.zeros((1, 9), int)
        segments[:, left : left + 6] = 1
        got = decoder(padded, segments)[:, left : left + 6]
        np.testing.assert_allclose(got, alone, atol=2e-6)


def test_packed_texts_do_not_see_each_other(decoder, rng):
    first, second = rng.integers(0, 20, (1, 4)), rng.integers(0, 20, (1, 5))
    packed = decoder(np.concatenate([first, second], axis=1), np.array([[1] * 4 + [2] * 5]))
    np.testing.assert_allclose(packed[:, :4], decoder(first, np.ones((1, 4), int)), atol=2e-6)
    np.testing.assert_allclose(packed[:, 4:], decoder(second, np.ones((1, 5), int)), atol=2e-6)


def test_later_tokens_do_not_change_earlier_logits(decoder, rng):
    tokens = rng.integers(0, 20, (1, 8))
    changed = tokens.copy()
    changed[0, 5:] = (tokens[0, 5:] + 1) % 20
    ones = np.ones((1, 8), int)
    before, after = decoder(tokens, ones), decoder(changed, ones)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:] - after[:, 5:]).max(axis=-1) > 1e-4).all()


def test_text_longer_than_the_position_table_is_refused():
    config = DecoderConfig(
        width=8, num_layers=1, num_heads=1, vocab_size=4, position="learned", max_length=4
    )
    model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"5 tokens is longer than the 4 learned positions"):
        model(jnp.zeros((1, 5), jnp.int32))


def test_grouping_of_layers_does_not_change_the_function(rng):
    """Layers stacked one by one and in groups of three are the same layers."""
    config = DecoderConfig(width=16, num_layers=7, num_heads=2, vocab_size=20)
    flat = Decoder(config, interval=1, dtype=jnp.float32, rngs=nnx.Rngs(0))
    grouped = Decoder(config, interval=3, dtype=jnp.float32, rngs=nnx.Rngs(1))
    grouped.embedding, grouped.norm = flat.embedding, flat.norm
    for j in range(3):
        grouped.layers[j] = jax.tree.map(lambda x, j=j: x[j:6:3], flat.layers[0])
    grouped.tail = jax.tree.map(lambda x: x[6:], flat.layers[0])
    tokens = jnp.asarray(rng.integers(0, 20, (2, 6)))
    np.testing.assert_allclose(grouped(tokens), flat(tokens), atol=1e-5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="width 10 does not divide by num_heads 4"):
        DecoderConfig(width=10, num_layers=1, num_heads=4, vocab_size=4)
    with pytest.raises(ValueError, match="num_heads 4 does not divide by num_kv_heads 3"):
        DecoderConfig(width=8, num_layers=1, num_heads=4, num_kv_heads=3, vocab_size=4)
