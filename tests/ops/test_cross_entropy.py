import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.ops.cross_entropy import (
    chunk_length,
    chunked_nll,
    chunked_row_nll,
    weighted_nll,
)
from flamingo_jax.ops.vocabulary_logits import vocabulary_logits
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 12, 16, 16_384
ROW_MIB = 4 * LENGTH * VOCABULARY / 2**20  # of one row's logits


@pytest.fixture
def arrays(rng):
    x = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    parts = [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (VOCABULARY - 2, 2)]
    tokens = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    weights = rng.random((BATCH, LENGTH)).astype(np.float32).round(1)
    return x, tuple(parts), tokens, weights


def gradients(nll, arrays):
    """Of x and of the last part, with a factor on top; and the compiled program."""
    x, (table, new_rows), tokens, weights = arrays

    def scaled(x, new_rows, table):
        return 0.3 * nll(x, (table, new_rows), tokens, weights)

    compiled = jax.jit(jax.value_and_grad(scaled, (0, 1))).lower(x, new_rows, table).compile()
    return compiled(x, new_rows, table), compiled


def plain(x, parts, tokens, weights):
    return weighted_nll(vocabulary_logits(x, parts), tokens, weights)


def chunked(x, parts, tokens, weights):
    return chunked_nll(vocabulary_logits, x, parts, tokens, weights, max_logits_mib=1)


def test_weighted_nll_by_hand():
    logits = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]]))
    tokens, weights = jnp.array([[0, 1, 0]]), jnp.array([[1.0, 1.0, 0.5]])
    expected = -np.log(0.8) - 0.5 * np.log(0.5)
    np.testing.assert_allclose(weighted_nll(logits, tokens, weights), expected, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, BATCH])  # fewer positions than columns, and more
def test_scores_of_several_parts_are_those_of_one_table(arrays, rows):
    x, parts, *_ = arrays
    scores = jax.jit(vocabulary_logits)(x[:rows], parts)
    np.testing.assert_allclose(scores, x[:rows] @ np.concatenate(parts).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [LENGTH, 11])  # 11 positions do not divide into chunks
def test_chunks_give_the_value_and_the_gradients_of_the_whole(arrays, length):
    x, parts, tokens, weights = arrays
    cut = x[:, :length], parts, tokens[:, :length], weights[:, :length]
    (value, (of_x, of_rows)), _ = gradients(chunked, cut)
    (expected, (expected_x, expected_rows)), _ = gradients(plain, cut)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(of_x, expected_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_rows, expected_rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chunked(*cut), plain(*cut), rtol=1e-6)


@pytest.mark.parametrize("length", [LENGTH, 11])
def test_rows_may_have_factors_of_their_own(arrays, length):
    x, parts, tokens, weights = arrays
    cut = x[:, :length], parts, tokens[:, :length], weights[:, :length]

    def by_row(x, parts, tokens, weights):
        rows_B = chunked_row_nll(vocabulary_logits, x, parts, tokens, weights, max_logits_mib=1)
        return jnp.sum(jax.nn.softplus(rows_B / 50))

    def plain_by_row(x, parts, tokens, weights):
        one_by_one = zip(x, tokens, weights, strict=True)
        rows = [plain(a[None], parts, b[None], c[None]) for a, b, c in one_by_one]
        return jnp.sum(jax.nn.softplus(jnp.stack(rows) / 50))

    (value, (of_x, of_rows)), compiled = gradients(by_row, cut)
    (expected, (expected_x, expected_rows)), _ = gradients(plain_by_row, cut)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(of_x, expected_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_rows, expected_rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_row(*cut), plain_by_row(*cut), rtol=1e-6)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.7 * BATCH * ROW_MIB * 2**20


def test_memory_is_bounded_and_no_logits_are_computed_twice(arrays):
    assert BATCH * ROW_MIB == 6  # so six chunks
    (_, compiled), (_, whole) = gradients(chunked, arrays), gradients(plain, arrays)
    of_logits = BATCH * ROW_MIB * 2**20
    assert whole.memory_analysis().temp_size_in_bytes > of_logits
    assert compiled.memory_analysis().temp_size_in_bytes < 0.7 * of_logits
    program = compiled.as_text()
    # The logits, the gradient of x, and that of the new rows; none for the table.
    assert sum(" dot(" in line or "matmul" in line for line in program.splitlines()) == 3


def test_rows_on_eight_devices_give_the_gradients_of_one(arrays):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    x, parts, tokens, weights = arrays
    (expected, (expected_x, expected_rows)), _ = gradients(plain, arrays)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    on_mesh = jax.device_put((x, tokens, weights), split)

    def scaled(x, new_rows, table, tokens, weights):
        return 0.3 * chunked(x, (table, new_rows), tokens, weights)

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(scaled, (0, 1)))
        value, (of_x, of_rows) = step(on_mesh[0], parts[1], parts[0], *on_mesh[1:])
    assert of_x.sharding.is_equivalent_to(split, 3)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(of_x, expected_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_rows, expected_rows, rtol=1e-5, atol=1e-6)


def test_bfloat16_gradients_do_not_lose_what_is_small(arrays):
    x, parts, tokens, weights = arrays
    low = jnp.asarray(x, jnp.bfloat16), tuple(jnp.asarray(p, jnp.bfloat16) for p in parts)
    (_, (of_x, _)), _ = gradients(chunked, (*low, tokens, weights))
    (_, (expected, _)), _ = gradients(plain, arrays)
    error = np.abs(np.asarray(of_x, np.float32) - expected).max() / np.abs(expected).max()
    assert error < 0.05


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_chunks_are_within_the_limit_and_nearly_even(length, limit):
    chunk = chunk_length(length, limit)
    assert 1 <= chunk <= min(limit, length)
    assert -(-length // chunk) * chunk < length + chunk
    assert -(-length // chunk) <= 2 * -(-length // limit)
