"""Attention: the platform's best kernel, or a plain one that XLA compiles well.

Letters as in `models/layers.py`. A kernel keeps no array of queries × keys for the gradient.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.ops import attention_kernels as kernels
from flamingo_jax.ops.attention_kernels import AttentionChoice

# A bias that hides a key. Finite, so that a query that sees nothing has a softmax.
MASKED = float(jnp.finfo(jnp.float32).min) / 2
# More or smaller blocks save little more, and each is code to compile.
CAUSAL_BLOCKS, SMALLEST_CAUSAL_BLOCK = 4, 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalRows:
    """Who sees whom in rows of text: small, and enough to make any part of mask and ALiBi bias.

    Attributes:
      segments_BL: a token sees those up to itself that have its number.
      positions_BL: of each token in its segment.
      slopes_H: of ALiBi (arXiv 2108.12409); None: no bias.
      bias_BxLS: all of it as one bias, for a kernel that reads one; see `prepared`.
    """

    segments_BL: Int[Array, "B L"]
    positions_BL: Int[Array, "B L"]
    slopes_H: Float[Array, "H"] | None = None
    bias_BxLS: Float[Array, "B #H L L"] | None = None


def attention_reference(
    q_BLHK: Float[Array, "B L H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    bias_BHLS: Float[Array, "#B #H #L S"] | float = 0.0,
) -> Float[Array, "B L H K"]:
    """Returns softmax(q·k / √K + bias) · v, where H / G query heads share a key head."""
    k_BSHK, v_BSHK = (
        jnp.repeat(y, q_BLHK.shape[2] // y.shape[2], axis=2) for y in (k_BSGK, v_BSGK)
    )
    scores_BHLS = jnp.einsum("blhk,bshk->bhls", q_BLHK, k_BSHK) / math.sqrt(q_BLHK.shape[-1])
    return jnp.einsum("bhls,bshk->blhk", jax.nn.softmax(scores_BHLS + bias_BHLS), v_BSHK)


def attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    causal: CausalRows | None = None,
    *,
    choice: AttentionChoice = "auto",
) -> Float[Array, "B L H K"]:
    """Computes `attention_reference`, of all keys or of those that causal rows let a query see.

    Without a kernel, causal rows are taken a block of queries at a time, each block with the keys
    that it can see.
    """
    kernel = kernels.choose(_call(q_BLHK, k_BSGK, causal), kernels.device_in_force(), choice).name
    if kernel == "cudnn":
        bias = None if causal is None else prepared(causal, q_BLHK, force=True).bias_BxLS
        return kernels.cudnn(q_BLHK, k_BSGK, v_BSGK, bias, is_causal=causal is not None)
    if kernel == "splash":
        assert causal is not None
        return kernels.splash(
            q_BLHK, k_BSGK, v_BSGK, causal.segments_BL, causal.positions_BL, causal.slopes_H
        )
    length, keys = q_BLHK.shape[1], k_BSGK.shape[1]
    attended = []
    for block in [range(length)] if causal is None else causal_blocks(length):
        seen = slice(keys if causal is None else block.stop)
        biases = () if causal is None else _causal_biases(causal, block)
        q = q_BLHK[:, block.start : block.stop]
        qkv = _by_key_head(q, k_BSGK[:, seen], v_BSGK[:, seen])
        y = softmax_attention(*qkv, _biases_by_key_head(biases, q.shape, k_BSGK.shape[2]))
        attended.append(rearrange(y, "b g (m l) k -> b l (g m) k", l=len(block)))
    return jnp.concatenate(attended, axis=1)


@jax.custom_vjp
def softmax_attention(
    q: Float[Array, "... L K"],
    k: Float[Array, "... S K"],
    v: Float[Array, "... S K"],
    biases: tuple[Float[Array, "... #L S"], ...] = (),
) -> Float[Array, "... L K"]:
    """Returns softmax(q·k / √K + biases) · v over any leading axes.

    No gradient flows to the biases. Rematerialisation computes the weights again from q and k.
    """
    weights, total = _softmax(q, k, biases)
    attended = jnp.einsum("...ls,...sk->...lk", weights.astype(v.dtype), v) / total
    return attended.astype(v.dtype)


def _softmax(q, k, biases):
    """Returns exp(score − max), and its sum."""
    score = jnp.einsum("...lk,...sk->...ls", q, k, preferred_element_type=jnp.float32)
    score = score * q.shape[-1] ** -0.5
    for bias in biases:  # one by one: their sum would be an array of all scores' size
        score = score + bias
    # Nothing of this is named to be kept, and the division by the sum comes after the product with
    # v: so XLA for CPUs makes one loop of it all, which both cores run and which writes no scores.
    # Alone, a matmul of many small matrices runs on one core there.
    weights = jnp.exp(score - score.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _softmax_attention_forward(q, k, v, biases):
    weights, total = _softmax(q, k, biases)
    attended = jnp.einsum("...ls,...sk->...lk", weights.astype(v.dtype), v) / total
    return attended.astype(v.dtype), (q, k, v, (weights / total).astype(v.dtype))


def _softmax_attention_backward(saved, gradient):
    q, k, v, weights = saved
    of_v = jnp.einsum("...ls,...lk->...sk", weights, gradient)
    of_weights = jnp.einsum("...lk,...sk->...ls", gradient, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
    of_score = (weights * (of_weights - mean)).astype(q.dtype)
    of_q = jnp.einsum("...ls,...sk->...lk", of_score, k, preferred_element_type=jnp.float32)
    of_k = jnp.einsum("...ls,...lk->...sk", of_score, q, preferred_element_type=jnp.float32)
    scale = q.shape[-1] ** -0.5  # here, as these are smaller than the scores
    return (scale * of_q).astype(q.dtype), (scale * of_k).astype(k.dtype), of_v, None


softmax_attention.defvjp(_softmax_attention_forward, _softmax_attention_backward)


def causal_mask(segments_BL: Int[Array, "B L"]) -> Bool[Array, "B 1 L L"]:
    """Returns whether a token (L) sees another (L): itself and earlier ones of its own segment.

    Padding (segment 0) sees padding only, which keeps its softmax finite and everything else
    untouched by it.
    """
    length = segments_BL.shape[1]
    same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
    return (same_BLL & jnp.tri(length, dtype=bool))[:, None]


def causal_blocks(length: int) -> list[range]:
    """Returns queries that attend together, to the keys up to the last of them."""
    count = max(1, min(CAUSAL_BLOCKS, length // SMALLEST_CAUSAL_BLOCK))
    size = math.ceil(length / count)
    return [range(first, min(first + size, length)) for first in range(0, length, size)]


def prepared(
    causal: CausalRows,
    q_BLHK: Float[Array, "B L H K"] | jax.ShapeDtypeStruct,
    choice: AttentionChoice = "auto",
    *,
    force: bool = False,
) -> CausalRows:
    """Adds what the kernel of such queries reads: once for all layers, outside of their scan.

    `force`: although another kernel may be chosen.
    """
    call = _call(q_BLHK, q_BLHK, causal)
    if causal.bias_BxLS is not None:
        return causal
    if not force and kernels.choose(call, kernels.device_in_force(), choice).name != "cudnn":
        return causal
    positions_BL, bias_BxLS = causal.positions_BL, jnp.zeros((), jnp.float32)
    if causal.slopes_H is not None:
        distance_BLS = positions_BL[:, None, :] - positions_BL[:, :, None]
        bias_BxLS = causal.slopes_H[None, :, None, None] * distance_BLS[:, None]
    # cuDNN takes one bias, in the type of the queries: of float32 it makes NaN (jax#32242). −10¹²
    # is far below any score; the type's lowest would overflow where two are added.
    bias_BxLS = jax.lax.stop_gradient(bias_BxLS).astype(q_BLHK.dtype)
    hidden = jnp.asarray(-1e12, q_BLHK.dtype)
    bias_BxLS = jnp.where(causal_mask(causal.segments_BL), bias_BxLS, hidden)
    return dataclasses.replace(causal, bias_BxLS=bias_BxLS)


def _call(q_BLHK, k_BSGK, causal: CausalRows | None) -> kernels.Call:
    is_causal = causal is not None
    (_, queries, _, head_width), keys = q_BLHK.shape, k_BSGK.shape[1]
    return kernels.Call(
        str(q_BLHK.dtype), head_width, queries, keys, masked=is_causal, causal=is_causal
    )


def _by_key_head(q_BLHK, k_BSGK, v_BSGK):
    """The query heads of one key head are further queries of it."""
    q_BGLK = rearrange(q_BLHK, "b l (g m) k -> b g (m l) k", g=k_BSGK.shape[2])
    return q_BGLK, *(rearrange(y, "b s g k -> b g s k") for y in (k_BSGK, v_BSGK))


def _biases_by_key_head(biases, shape: tuple[int, ...], groups: int) -> tuple[Array, ...]:
    _, length, heads, _ = shape
    if heads == groups:
        return tuple(biases)

    def by_group(bias_BHLS: Array) -> Array:
        shape = (*bias_BHLS.shape[:1], heads, length, *bias_BHLS.shape[3:])
        every_BHLS = jnp.broadcast_to(bias_BHLS, shape)
        return rearrange(every_BHLS, "b (g m) l s -> b g (m l) s", g=groups)

    return tuple(map(by_group, biases))


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
