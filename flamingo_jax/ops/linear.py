"""Linear layers whose gradients are plain matmuls, marked for rematerialisation."""

import jax
import jax.numpy as jnp
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.parallel.remat import linear_output


def linear(
    x: Float[Array, "... D"],
    kernel_DE: Float[Array, "D E"],
    bias_E: Float[Array, "E"] | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "... E"]:
    """Returns x · kernel + bias, computed in `dtype` (None: that of its inputs).

    All leading axes are one: for several contracted axes, XLA on a CPU writes transposed copies.
    """
    x, kernel_DE, bias_E = promote_dtype((x, kernel_DE, bias_E), dtype=dtype)
    rows_ND = x.reshape(-1, x.shape[-1])
    y_NE = jax.lax.dot_general(rows_ND, kernel_DE, (((1,), (0,)), ((), ())))
    if bias_E is not None:
        y_NE += bias_E[None]
    return linear_output(y_NE).reshape(*x.shape[:-1], y_NE.shape[-1])


def linear_of_scaled(
    x: Float[Array, "... D"],
    scale_D: Float[Array, "D"],
    shift_D: Float[Array, "D"],
    kernel_DE: Float[Array, "D E"],
) -> Float[Array, "... E"]:
    """Returns (x · scale + shift) · kernel, with scale and shift moved into the weight.

    So the matmul's input is x itself: where several layers read one x, it is kept once, and where
    no gradient flows to x, none is computed for scale and shift alone. The output is not marked:
    it is computed again, as all layers' outputs of one large x are larger still.
    """
    scale_D, shift_D, kernel_DE = (y.astype(jnp.float32) for y in (scale_D, shift_D, kernel_DE))
    scaled_DE, shift_E = scale_D[:, None] * kernel_DE, shift_D @ kernel_DE
    rows_ND = x.reshape(-1, x.shape[-1])
    y_NE = rows_ND @ scaled_DE.astype(x.dtype) + shift_E.astype(x.dtype)
    return y_NE.reshape(*x.shape[:-1], -1)
