"""Functions whose derivative is written by hand.

What differentiation finds by itself keeps more arrays for the backward pass, or goes through them
more often. Letters as in `layers.py`; statistics are in float32, whatever the type of the inputs.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# What the remat policy "elementwise" keeps besides linear outputs: small beside what it spares.
SAVE_ELEMENTWISE = "kept"
# The outputs of linear layers, which "elementwise" and "dots" keep.
LINEAR_OUTPUT = "linear output"
# A bias that hides a key. Finite, so that a query that sees nothing has a softmax.
MASKED = float(jnp.finfo(jnp.float32).min) / 2


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU, x · Φ(x) (arXiv 1606.08415), by erf, as PyTorch has it. `jax.nn.gelu` takes erfc, whose
    precision far below zero, where nothing is left of x, takes twice the time on a CPU."""
    x_32 = x.astype(jnp.float32)
    return (x_32 * _normal_cdf(x_32)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    x_32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * x_32**2) * (1 / math.sqrt(2 * math.pi))
    slope = _normal_cdf(x_32) + x_32 * density
    return gelu(x), tangent * slope.astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: Float[Array, "... D"],
    scale_D: Float[Array, "D"],
    bias_D: Float[Array, "D"] | None,
    eps: float,
    dtype: DTypeLike,
) -> Float[Array, "... D"]:
    """Layer normalization (arXiv 1607.06450), given in `dtype`; mean and variance in two passes."""
    return _normalize_forward(x, scale_D, bias_D, eps, dtype)[0]


def _normalize_forward(x, scale_D, bias_D, eps, dtype):
    centered = x.astype(jnp.float32)
    mean = checkpoint_name(centered.mean(axis=-1, keepdims=True), SAVE_ELEMENTWISE)
    centered = centered - mean
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    inverse = checkpoint_name(jax.lax.rsqrt(variance + eps), SAVE_ELEMENTWISE)
    y = centered * (inverse * scale_D.astype(jnp.float32))
    if bias_D is not None:
        y = y + bias_D.astype(jnp.float32)
    return y.astype(dtype), (x, mean, inverse, scale_D, bias_D)


def _normalize_backward(eps, dtype, saved, gradient):
    x, mean, inverse, scale_D, bias_D = saved
    gradient = gradient.astype(jnp.float32)
    standard = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale_D.astype(jnp.float32)
    along = jnp.mean(scaled * standard, axis=-1, keepdims=True)
    of_x = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - standard * along)
    rows = tuple(range(x.ndim - 1))
    of_scale_D = jnp.sum(gradient * standard, axis=rows).astype(scale_D.dtype)
    of_bias_D = None if bias_D is None else jnp.sum(gradient, axis=rows).astype(bias_D.dtype)
    return of_x.astype(x.dtype), of_scale_D, of_bias_D


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def softmax_attention(
    q: Float[Array, "... L K"],
    k: Float[Array, "... S K"],
    v: Float[Array, "... S K"],
    biases: tuple[Float[Array, "... #L S"], ...] = (),
) -> Float[Array, "... L K"]:
    """softmax(q·k / √K + biases) · v over any leading axes; no gradient flows to the biases.

    Rematerialisation computes the weights again from `q` and `k`.
    """
    return _attention_forward(q, k, v, biases)[0]


def _attention_forward(q, k, v, biases):
    score = jnp.einsum("...lk,...sk->...ls", q, k, preferred_element_type=jnp.float32)
    score = score * q.shape[-1] ** -0.5
    for bias in biases:  # one by one: their sum would be an array of all scores' size
        score = score + bias
    # Nothing of this is named to be kept, and the division comes last: so XLA for CPUs makes one
    # loop of it all, which both cores run and which writes no scores. Alone, a matmul of many small
    # matrices runs on one core there.
    weights = jnp.exp(score - score.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    attended = jnp.einsum("...ls,...sk->...lk", weights.astype(v.dtype), v) / total
    return attended.astype(v.dtype), (q, k, v, (weights / total).astype(v.dtype))


def _attention_backward(saved, gradient):
    q, k, v, weights = saved
    of_v = jnp.einsum("...ls,...lk->...sk", weights, gradient)
    of_weights = jnp.einsum("...lk,...sk->...ls", gradient, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
    of_score = (weights * (of_weights - mean)).astype(q.dtype)
    of_q = jnp.einsum("...ls,...sk->...lk", of_score, k, preferred_element_type=jnp.float32)
    of_k = jnp.einsum("...ls,...lk->...sk", of_score, q, preferred_element_type=jnp.float32)
    scale = q.shape[-1] ** -0.5  # here, as these are smaller than the scores
    return (scale * of_q).astype(q.dtype), (scale * of_k).astype(k.dtype), of_v, None


softmax_attention.defvjp(_attention_forward, _attention_backward)
