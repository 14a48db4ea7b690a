"""Attention as XLA compiles it, without a kernel. Letters as in `layers.py`.

Causal rows are taken a block of queries at a time, each block with the keys that it can see.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.ops.fused import MASKED, softmax_attention

# More or smaller blocks save little more, and each is code to compile.
CAUSAL_BLOCKS, SMALLEST_CAUSAL_BLOCK = 4, 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalRows:
    """What causal mask and ALiBi bias are made of: much smaller, and enough to make any part."""

    segments_BL: Int[Array, "B L"]  # a token sees those up to itself that have its number
    positions_BL: Int[Array, "B L"]
    slopes_H: Float[Array, "H"] | None = None  # of ALiBi


def causal_mask(segments_BL: Int[Array, "B L"]) -> Bool[Array, "B 1 L L"]:
    """A token sees itself and earlier tokens of its own segment. Padding (segment 0) sees padding
    only, which keeps its softmax finite and everything else untouched by it."""
    length = segments_BL.shape[1]
    same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
    return (same_BLL & jnp.tri(length, dtype=bool))[:, None]


def attend_plain(
    q_BLHK: Float[Array, "B L H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    biases: Iterable[Float[Array, "#B #H #L S"]],
) -> Float[Array, "B L H K"]:
    """softmax(q·k / √K + biases) · v; H / G query heads share a key head."""
    length, groups = q_BLHK.shape[1], k_BSGK.shape[2]
    # The query heads of one key head are further queries of it.
    q_BGLK = rearrange(q_BLHK, "b l (g m) k -> b g (m l) k", g=groups)
    k_BGSK, v_BGSK = (rearrange(y, "b s g k -> b g s k") for y in (k_BSGK, v_BSGK))

    def by_group(bias_BHLS: Array) -> Array:
        shape = (*bias_BHLS.shape[:1], q_BLHK.shape[2], length, *bias_BHLS.shape[3:])
        every_BHLS = jnp.broadcast_to(bias_BHLS, shape)
        return rearrange(every_BHLS, "b (g m) l s -> b g (m l) s", g=groups)

    if q_BLHK.shape[2] != groups:
        biases = map(by_group, biases)
    attended_BGLK = softmax_attention(q_BGLK, k_BGSK, v_BGSK, tuple(biases))
    return rearrange(attended_BGLK, "b g (m l) k -> b l (g m) k", l=length)


def causal_blocks(length: int) -> list[range]:
    """Queries that attend together, to the keys up to the last of them."""
    count = max(1, min(CAUSAL_BLOCKS, length // SMALLEST_CAUSAL_BLOCK))
    size = math.ceil(length / count)
    return [range(first, min(first + size, length)) for first in range(0, length, size)]


def attend_causal(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    causal: CausalRows,
) -> Float[Array, "B L H K"]:
    """Causal rows, a block of queries at a time."""

    def attend_block(block: range) -> Array:
        queries, keys = slice(block.start, block.stop), slice(block.stop)
        biases = _causal_biases(causal, block)
        return attend_plain(q_BLHK[:, queries], k_BLGK[:, keys], v_BLGK[:, keys], biases)

    blocks = causal_blocks(q_BLHK.shape[1])
    return jnp.concatenate([attend_block(block) for block in blocks], axis=1)


def _causal_biases(causal: CausalRows, block: range) -> list[Float[Array, "B #H #L S"]]:
    """The mask, and ALiBi as a bias of keys: no array of heads × queries × keys.

    Distances are those from the block's last query. From another one of the same segment all of
    them differ alike, which makes no difference to a softmax.
    """
    mask_BxLS = causal_mask(causal.segments_BL[:, : block.stop])[:, :, block.start :]
    biases = [jnp.where(mask_BxLS, 0.0, MASKED)]
    if causal.slopes_H is not None:
        positions_BS = causal.positions_BL[:, : block.stop]
        distances_BS = positions_BS - positions_BS[:, -1:]
        biases.append(causal.slopes_H[:, None, None] * distances_BS[:, None, None])
    return biases
