"""Logits over a vocabulary whose rows are several parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def vocabulary_logits(
    x_BLD: Float[Array, "B L D"], parts: tuple[Float[Array, "rows D"], ...]
) -> Float[Array, "B L V"]:
    """Float32 scalar products with the rows of all parts, in their order.

    Either the parts are joined or their scores, whichever is less to copy: in decoding, the scores.
    The gradient is computed in the type of `x`: the transpose that JAX has for a float32 result is
    a float32 copy of the table. Parts without a gradient cost nothing.
    """

    def scores(rows: Array) -> Array:
        return jnp.einsum("bld,vd->blv", x_BLD, rows, preferred_element_type=jnp.float32)

    batch, length, width = x_BLD.shape
    if batch * length < width:
        return jnp.concatenate([scores(part) for part in parts], axis=-1)
    return scores(jnp.concatenate(parts))


def _row_scores_forward(x, parts):
    wanted = tuple(() if part.perturbed else None for part in parts)
    values = tuple(part.value for part in parts)
    return vocabulary_logits(x.value, values), (x.value, values, wanted)


def _row_scores_backward(saved, gradient_BLV):
    x_BLD, parts, wanted = saved
    gradient_BLV = gradient_BLV.astype(x_BLD.dtype)
    gradients, first = [], 0
    for part, want in zip(parts, wanted, strict=True):
        own_BLV = gradient_BLV[..., first : first + len(part)]
        first += len(part)
        gradients.append(None if want is None else jnp.einsum("blv,bld->vd", own_BLV, x_BLD))
    return jnp.einsum("blv,vd->bld", gradient_BLV, jnp.concatenate(parts)), tuple(gradients)


vocabulary_logits.defvjp(_row_scores_forward, _row_scores_backward, symbolic_zeros=True)
