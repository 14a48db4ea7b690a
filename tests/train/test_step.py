import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax.train.step import init_state, make_train_step, split_micro_batches
from tests.conftest import IMAGE, VOCAB, random_images

TRAINED = ("resampler/", "cross_attention/", "decoder/embedding/new_rows")
WEIGHTS = {"pairs": 0.2, "interleaved": 1.0}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)

    def stream(rows, length, images):
        tokens = rng.integers(0, VOCAB, (rows, length)).astype(np.int32)
        tokens[:, 1] = IMAGE
        segments = np.ones_like(tokens)
        for row in range(rows):  # rows count different numbers of tokens
            segments[row, length - row % 3 :] = 0
        return {
            "images": random_images(rng, rows, images, 1),
            "tokens": tokens,
            "segments": segments,
            "weights": (segments * (tokens != IMAGE)).astype(np.float32),
        }

    return {"pairs": stream(8, 5, 1), "interleaved": stream(4, 7, 2)}


@pytest.fixture(scope="module")
def parts(small):
    graph, params, _ = small
    trained = {p: v for p, v in params.items() if p.startswith(TRAINED)}
    frozen = {p: v for p, v in params.items() if p not in trained}
    return graph, trained, frozen


def one_step(parts, batch, accumulation_steps=1, optimizer=None, micro_clip_norm=None):
    graph, trained, frozen = parts
    optimizer = optimizer or optax.sgd(1.0)
    step = jax.jit(make_train_step(graph, optimizer, WEIGHTS, accumulation_steps, micro_clip_norm))
    return step(init_state(trained, optimizer), frozen, batch)


@pytest.fixture(scope="module")
def whole(parts, batch):
    return one_step(parts, batch)


def test_the_loss_is_the_weighted_sum_of_stream_means(whole, batch):
    metrics = whole[1]
    expected = 0.2 * metrics["loss/pairs"] + metrics["loss/interleaved"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert metrics["tokens/pairs"] == batch["pairs"]["weights"][:, 1:].sum()


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_accumulation_equals_the_large_batch(parts, batch, whole, accumulation_steps):
    """Also though micro-batches count different numbers of tokens."""
    state, metrics = one_step(parts, batch, accumulation_steps)
    for name, value in whole[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    for path, value in whole[0].params.items():
        np.testing.assert_allclose(state.params[path], value, atol=1e-5, err_msg=path)


def test_openflamingos_accumulation_without_clipping(parts, batch, whole):
    """A norm of 0 clips nothing. Its means of micro-batches are near the whole batch's, not it."""
    _, metrics = one_step(parts, batch, 2, micro_clip_norm=0.0)
    np.testing.assert_allclose(metrics["grad_norm"], whole[1]["grad_norm"], rtol=0.2)
    assert metrics["loss"] != whole[1]["loss"]


def test_micro_batches_take_every_kth_row():
    rows = split_micro_batches(jnp.arange(6), 2)
    assert rows.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_state_and_gradients_exist_for_trained_parameters_only(parts, batch):
    graph, trained, frozen = parts
    optimizer = optax.adamw(1e-3)
    state = init_state(trained, optimizer)
    trained_size = sum(x.size for x in trained.values())
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state)) - 1  # less Adam's counter
    assert moments == 2 * trained_size
    # The compiled step returns the state and scalars: nothing in the shape of a frozen stack.
    step = make_train_step(graph, optimizer, WEIGHTS)
    new_state, metrics = jax.eval_shape(step, state, frozen, batch)
    assert set(new_state.params) == set(trained)
    assert all(value.shape == () for value in metrics.values())


def test_an_update_that_is_not_finite_is_skipped_and_counted(parts, batch):
    graph, trained, frozen = parts
    optimizer = optax.adam(1e-3)
    step = jax.jit(make_train_step(graph, optimizer, WEIGHTS))
    state = init_state(trained, optimizer)
    broken = {**frozen, "decoder/norm/scale": frozen["decoder/norm/scale"].at[0].set(jnp.nan)}
    skipped, metrics = step(state, broken, batch)
    skipped, metrics = step(skipped, broken, batch)
    assert metrics["nonfinite_steps"] == 2
    assert skipped.step == 2
    jax.tree.map(
        np.testing.assert_array_equal,
        (skipped.params, skipped.opt_state),
        (state.params, state.opt_state),
    )
    after, metrics = step(skipped, frozen, batch)
    assert metrics["nonfinite_steps"] == 0
    changed = [bool((after.params[p] != v).any()) for p, v in trained.items()]
    assert np.mean(changed) > 0.9


def test_a_stream_without_counted_tokens_has_loss_zero(parts, batch):
    nothing = {**batch["pairs"], "weights": np.zeros_like(batch["pairs"]["weights"])}
    _, metrics = one_step(parts, {**batch, "pairs": nothing})
    assert metrics["loss/pairs"] == 0
    assert np.isfinite(metrics["grad_norm"])
