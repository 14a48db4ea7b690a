"""Attention over keys that were kept: a prompt's, and those of the text that continues it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Head by head, as attention reads them: decoding would turn them anew for every token.
KeysValues = tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]]


def cached_attention(
    q_BLHK: Float[Array, "BW L H K"],
    parts: Sequence[KeysValues],
    mask_BLS: Bool[Array, "B L S"],
    bias_BHLS: Float[Array, "B H L S"] | None = None,
) -> Float[Array, "BW L H K"]:
    """Returns softmax(q·k / √K + bias, where mask) · v over the keys of all parts together.

    Args:
      q_BLHK: of W continuations of each of B rows, row by row.
      parts: one after another; a part has one entry per row (a prompt's, read by all that continue
        it), or one per continuation.
      mask_BLS: whether a query sees a key; S counts the keys of all parts.
      bias_BHLS: likewise per row.
    """
    rows, (_, length, _, head_width) = len(mask_BLS), q_BLHK.shape
    num_groups = parts[0][0].shape[1]

    def per_part(x: Array, size: int) -> Array:  # [B, G, W, L, r, …] → [size, G, queries, …]
        x = x.reshape(rows, num_groups, size // rows, -1, x.shape[-1])
        return x.swapaxes(1, 2).reshape(size, num_groups, -1, x.shape[-1])

    def together(x: Array) -> Array:  # the inverse
        x = x.reshape(rows, -1, num_groups, *x.shape[2:]).swapaxes(1, 2)
        return x.reshape(rows, num_groups, -1, length, q_BLHK.shape[2] // num_groups, x.shape[-1])

    q_BWLGrK = q_BLHK.reshape(
        rows, -1, length, num_groups, q_BLHK.shape[2] // num_groups, head_width
    )
    q_BGWLrK = jnp.moveaxis(q_BWLGrK, 3, 1)
    score_BGWLrS = jnp.concatenate(
        [
            together(
                jnp.einsum(
                    "bgqk,bgsk->bgqs",
                    per_part(q_BGWLrK, len(k_BGSK)),
                    k_BGSK,
                    preferred_element_type=jnp.float32,
                )
            )
            for k_BGSK, _ in parts
        ],
        axis=-1,
    )
    score_BGWLrS *= head_width**-0.5
    if bias_BHLS is not None:
        bias_BGrLS = bias_BHLS.reshape(rows, num_groups, -1, *bias_BHLS.shape[2:])
        score_BGWLrS += bias_BGrLS.swapaxes(2, 3)[:, :, None]
    seen = mask_BLS[:, None, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, score_BGWLrS, jnp.finfo(jnp.float32).min))
    y_BGWLrK, first = jnp.zeros_like(q_BGWLrK), 0
    for _, v_BGSK in parts:
        size, _, num_keys, _ = v_BGSK.shape
        part = per_part(weights[..., first : first + num_keys].astype(v_BGSK.dtype), size)
        y_BGWLrK += together(jnp.einsum("bgqs,bgsk->bgqk", part, v_BGSK))
        first += num_keys
    return jnp.moveaxis(y_BGWLrK, 1, 3).reshape(q_BLHK.shape)
