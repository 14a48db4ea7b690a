import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flamingo_jax
from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine.generate import generate
from flamingo_jax.ops.int8 import LEVELS, Int8Weights, quantize
from flamingo_jax.weights.model_directory import Provenance, write_directory
from flamingo_jax.weights.views import LazyArray
from tests.conftest import IMAGE, random_images, random_params, small_config


@pytest.mark.parametrize("axis", [-2, -1])
def test_a_weight_is_off_by_half_a_step_at_most(rng, axis):
    weights = rng.normal(size=(3, 40, 24)).astype(np.float32) * 10.0 ** rng.integers(
        -3, 3, (3, 1, 1)
    )
    weights[1, 7], weights[2, :, 5] = 0, 0  # a row and a column of nothing
    packed = quantize(jnp.asarray(weights), axis)
    step = np.abs(weights).max(axis=axis, keepdims=True) / LEVELS
    assert packed.values.dtype == jnp.int8
    assert packed.nbytes == weights.size + 4 * step.size
    error = np.abs(np.asarray(packed[...]) - weights)
    assert (error <= step / 2 * (1 + 1e-4)).all()  # float32's own rounding of w / step
    assert error.max() > 0.4 * step[error.max(axis=axis, keepdims=True) == error.max()].max()
    x = rng.normal(size=(5, 40)).astype(np.float32)
    if axis == -2:
        bound = np.abs(x).sum(axis=1, keepdims=True) * step / 2
        assert (
            np.abs(x @ np.asarray(packed[...]) - x @ weights) <= bound + 1e-4 * bound.max()
        ).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config, params = small_config(), random_params(small_config())
    leaves = {p: LazyArray(x.shape, (np.asarray(x),), stacked=False) for p, x in params.items()}
    out = tmp_path_factory.mktemp("int8") / "model"
    write_directory(out, config, Provenance("mpt", {}, {}, {}), leaves)
    return out


def test_a_loaded_model_is_the_one_of_the_rounded_weights(folder, rng):
    """Layers stacked and scanned, sliced for decoding, the vocabulary's table at both its ends."""
    whole, small = (flamingo_jax.load(folder, quantize=q) for q in (None, "int8"))
    packed = {p for p, x in small.params.items() if isinstance(x, Int8Weights)}
    matrices = re.compile(r"^(vision|decoder)/.*kernel$|^decoder/embedding/table$")
    assert packed == set(filter(matrices.search, whole.params))
    rounded = {p: x[...] if p in packed else x for p, x in small.params.items()}
    images, tokens = random_images(rng, 2, 1, 1), rng.integers(0, 30, (2, 6))
    tokens[:, 1] = IMAGE
    mask = np.ones_like(tokens)
    expected = jax.jit(lambda p: whole.graph.merge(p)(images, tokens, mask))(rounded)
    logits = small.logits(images, tokens, mask)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(logits - whole.logits(images, tokens, mask)).max() > 1e-4
    made, again = (generate(small.graph, p, images, tokens) for p in (small.params, rounded))
    np.testing.assert_array_equal(made.tokens_BRN, again.tokens_BRN)
    np.testing.assert_allclose(made.logprobs_BRN, again.logprobs_BRN, atol=1e-4)


def test_other_widths_are_refused(folder):
    with pytest.raises(UserError, match="quantize is 'int4', expected None or 'int8'"):
        flamingo_jax.load(folder, quantize="int4")
