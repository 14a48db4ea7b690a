import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.ops.attention import MASKED, softmax_attention
from flamingo_jax.ops.fused import gelu, layer_norm, rms_norm
from flamingo_jax.parallel.remat import remat

CLOSE = {"float32": {"rtol": 2e-5, "atol": 2e-6}, "bfloat16": {"rtol": 2e-2, "atol": 2e-2}}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def check(ours, plain, inputs, dtype):
    """Value and gradients of `ours` in `dtype` are those that JAX finds of `plain` in float32."""
    given = [x.astype(dtype) for x in inputs]
    expected, pull_back = jax.vjp(plain, *[x.astype(jnp.float32) for x in given])
    out, ours_back = jax.vjp(ours, *given)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), expected, **CLOSE[dtype])
    gradient = normal(99, *expected.shape).astype(dtype)
    for one, other in zip(
        ours_back(gradient), pull_back(gradient.astype(jnp.float32)), strict=True
    ):
        assert one.dtype == dtype
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype(jnp.float32) / scale, other / scale, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
def test_gelu(dtype):
    x = jnp.concatenate([4 * normal(0, 200), jnp.array([-40.0, -6.0, 0.0, 6.0, 40.0])])
    check(gelu, lambda x: jax.nn.gelu(x, approximate=False), [x], dtype)


def test_gelu_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    out = torch.nn.functional.gelu(tensor)
    out.sum().backward()
    np.testing.assert_allclose(gelu(x), out.detach(), rtol=1e-6, atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    np.testing.assert_allclose(slope, tensor.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm(has_bias, dtype):
    def plain(x, scale, bias):
        centered = x - x.mean(-1, keepdims=True)
        y = centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5) * scale
        return y + bias if has_bias else y + 0 * bias

    def ours(x, scale, bias):
        y = layer_norm(x, scale, bias if has_bias else None, 1e-5, dtype)
        return y if has_bias else y + 0 * bias

    x = 3 * normal(0, 4, 5, 16) + 100 * (dtype == "float32")  # far from zero, as residuals are
    check(ours, plain, [x, 1 + 0.1 * normal(1, 16), normal(2, 16)], dtype)


@pytest.mark.parametrize("dtype", CLOSE)
def test_rms_norm(dtype):
    def plain(x, scale):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale

    inputs = [3 * normal(0, 4, 5, 16), 1 + 0.1 * normal(1, 16)]
    check(lambda x, scale: rms_norm(x, scale, 1e-5, dtype), plain, inputs, dtype)


def plain_attention(q, k, v, bias):
    score = jnp.einsum("...lk,...sk->...ls", q, k) / jnp.sqrt(q.shape[-1])
    return jax.nn.softmax(score + bias) @ v


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("biased", [True, False])
def test_softmax_attention(biased, dtype):
    biases = (2 * normal(3, 2, 3, 5, 7), normal(4, 2, 1, 1, 7)) if biased else ()
    inputs = [normal(0, 2, 3, 5, 8), normal(1, 2, 3, 7, 8), normal(2, 2, 3, 7, 8)]
    check(
        lambda q, k, v: softmax_attention(q, k, v, biases),
        lambda q, k, v: plain_attention(q, k, v, sum(biases)),
        inputs,
        dtype,
    )


def test_xla_for_cpus_writes_no_scores():
    """As long as it makes one loop of attention, which both cores run."""
    q, k = normal(0, 8, 64, 64, 8), normal(1, 8, 64, 128, 8)
    scores = 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    biases = (normal(2, 8, 1, 64, 128),)
    attend = remat(lambda *qkv: softmax_attention(*qkv, biases), "elementwise")
    forward = jax.jit(lambda *qkv: jax.vjp(attend, *qkv))
    compiled = forward.lower(q, k, k).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 8


def test_a_query_that_sees_nothing_has_finite_gradients():
    q, k, v = (normal(seed, 1, 4, 8) for seed in range(3))
    nothing = jnp.full((1, 4, 4), MASKED)
    out, pull_back = jax.vjp(lambda *qkv: softmax_attention(*qkv, (nothing,)), q, k, v)
    np.testing.assert_allclose(out, jnp.broadcast_to(v.mean(1, keepdims=True), v.shape), rtol=1e-5)
    assert all(jnp.isfinite(gradient).all() for gradient in pull_back(jnp.ones_like(out)))


def test_no_gradient_flows_to_a_bias():
    q = normal(0, 1, 4, 8)
    gradient = jax.grad(lambda bias: softmax_attention(q, q, q, (bias,)).sum())(normal(1, 1, 4, 4))
    assert not gradient.any()
