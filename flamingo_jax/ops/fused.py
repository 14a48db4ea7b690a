"""Norms and activations whose derivative is written by hand.

What differentiation finds by itself keeps more arrays for the backward pass, or goes through them
more often. Statistics are in float32, whatever the type of the inputs.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.parallel.remat import keep_elementwise


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
def layer_norm(
    x: Float[Array, "... D"],
    scale_D: Float[Array, "D"],
    bias_D: Float[Array, "D"] | None,
    eps: float,
    dtype: DTypeLike,
) -> Float[Array, "... D"]:
    """Returns (x − mean) / √(variance + eps) · scale + bias in `dtype` (arXiv 1607.06450).

    Mean and variance are taken in two passes: in one, digits are lost that parity with PyTorch
    needs.
    """
    return _layer_norm_forward(x, scale_D, bias_D, eps, dtype)[0]


def _layer_norm_forward(x, scale_D, bias_D, eps, dtype):
    centered = x.astype(jnp.float32)
    mean = keep_elementwise(centered.mean(axis=-1, keepdims=True))
    centered = centered - mean
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    inverse = keep_elementwise(jax.lax.rsqrt(variance + eps))
    y = centered * (inverse * scale_D.astype(jnp.float32))
    if bias_D is not None:
        y = y + bias_D.astype(jnp.float32)
    return y.astype(dtype), (x, mean, inverse, scale_D, bias_D)


def _layer_norm_backward(eps, dtype, saved, gradient):
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


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def standardize(
    x: Float[Array, "... D"], *, eps: float = 1e-5, dtype: DTypeLike
) -> Float[Array, "... D"]:
    """Returns `layer_norm` without scale and bias."""
    x = x.astype(jnp.float32)
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return (centered * jax.lax.rsqrt(variance + eps)).astype(dtype)


def rms_norm(
    x: Float[Array, "... D"], scale_D: Float[Array, "D"], eps: float, dtype: DTypeLike
) -> Float[Array, "... D"]:
    """Returns x / √(mean of squares + eps) · scale in `dtype` (arXiv 1910.07467)."""
    x, scale_D = x.astype(dtype).astype(jnp.float32), scale_D.astype(dtype)
    squares = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return (x * (jax.lax.rsqrt(squares + eps) * scale_D)).astype(dtype)
