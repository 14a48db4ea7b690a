import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.train.optimizer import OptimizerConfig, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_schedules(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=2)
    rate = learning_rate(config, num_steps=6)
    np.testing.assert_allclose([rate(step) for step in range(6)], expected, atol=1e-6)


def test_without_warmup_the_first_update_has_the_full_rate():
    assert learning_rate(OptimizerConfig(learning_rate=0.5), 10)(0) == 0.5


def test_decay_is_on_cross_attention_alone():
    params = {"cross_attention/out/kernel": jnp.ones(3), "resampler/latents": jnp.ones(3)}
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 10, params)
    zeros = {path: jnp.zeros(3) for path in params}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["cross_attention/out/kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["resampler/latents"], 0)


def test_gradients_are_clipped_by_their_common_norm():
    params = {"cross_attention/a": jnp.zeros(1), "resampler/b": jnp.zeros(1)}
    gradients = {"cross_attention/a": jnp.array([3.0]), "resampler/b": jnp.array([4.0])}

    def first_moment(clip_norm):
        optimizer = make_optimizer(OptimizerConfig(clip_norm=clip_norm), 10, params)
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        return next(s.mu for s in _flat(state) if hasattr(s, "mu"))

    np.testing.assert_allclose(first_moment(1.0)["resampler/b"], 0.1 * 0.8, rtol=1e-6)
    np.testing.assert_allclose(first_moment(0.0)["resampler/b"], 0.1 * 4.0, rtol=1e-6)


def _flat(state):
    if hasattr(state, "_fields"):
        return [state]
    return [inner for part in state for inner in _flat(part)]


def test_a_decay_pattern_must_match_something():
    with pytest.raises(ValueError, match="matches no parameter"):
        make_optimizer(OptimizerConfig(), 10, {"resampler/latents": jnp.zeros(1)})
