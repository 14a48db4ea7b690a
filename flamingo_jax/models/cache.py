"""The decoder's layers over text whose earlier keys and values are kept.

A cache is a dict {"k", "v"} of arrays [layers, B, S, G, K], passed in and returned. Text that
continues a prompt attends to two parts: the prompt's cache, read only and one per row however many
beams or answers continue it, and its own. Letters as in `layers.py`; W continuations of a row
stand in one batch of B · W rows, row by row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.models.decoder import Decoder
from flamingo_jax.models.layers import AttentionContext, Block, pin_batch

Cache = dict[str, Float[Array, "layers B S G K"]]
KeysValues = tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]


def empty_cache(decoder: Decoder, rows: int, length: int) -> Cache:
    config = decoder.config
    shape = (config.num_layers, rows, length, config.kv_heads, config.head_width)
    return {name: jnp.zeros(shape, decoder.dtype) for name in ("k", "v")}


def attend(
    q_BLHK: Float[Array, "BW L H K"], parts: Sequence[KeysValues], context: AttentionContext
) -> Float[Array, "BW L H K"]:
    """Attention over the keys of all parts together.

    A part has one entry per row of the batch, or one per continuation. The context's mask and bias
    are per row: [B, 1 or H, L, keys of all parts].
    """
    mask_BxLS, bias_BHLS = context.mask_BxLS, context.bias_BHLS
    if len(parts) == 1:
        return jax.nn.dot_product_attention(q_BLHK, *parts[0], bias=bias_BHLS, mask=mask_BxLS)
    assert mask_BxLS is not None
    _, length, num_heads, head_width = q_BLHK.shape
    num_groups = parts[0][0].shape[2]
    grouped = (num_groups, num_heads // num_groups)
    scores = []
    for k_BSGK, _ in parts:
        q_BLGrK = q_BLHK.reshape(len(k_BSGK), -1, *grouped, head_width)
        score = jnp.einsum("blgrk,bsgk->blgrs", q_BLGrK, k_BSGK, preferred_element_type=jnp.float32)
        scores.append(score.reshape(len(mask_BxLS), -1, length, num_heads, k_BSGK.shape[1]))
    score_BWLHS = jnp.concatenate(scores, axis=-1) * head_width**-0.5
    if bias_BHLS is not None:
        score_BWLHS += bias_BHLS.swapaxes(1, 2)[:, None]
    seen_BxLxS = mask_BxLS.swapaxes(1, 2)[:, None]
    weights = jax.nn.softmax(jnp.where(seen_BxLxS, score_BWLHS, jnp.finfo(jnp.float32).min))
    y_BLHK, first = jnp.zeros_like(q_BLHK), 0
    for _, v_BSGK in parts:
        last = first + v_BSGK.shape[1]
        part = weights[..., first:last].astype(v_BSGK.dtype)
        part = part.reshape(len(v_BSGK), -1, *grouped, last - first)
        y_BLHK += jnp.einsum("blgrs,bsgk->blgrk", part, v_BSGK).reshape(y_BLHK.shape)
        first = last
    return y_BLHK


def run_cached(
    decoder: Decoder,
    x_BLD: Float[Array, "BW L D"],
    context: AttentionContext,
    cache: Cache | None,
    *,
    start: int | Int[Array, ""] = 0,
    prompt: Cache | None = None,
    between: tuple[Any, Callable[[Any, Array], Array]],
) -> tuple[Float[Array, "BW L D"], Cache | None]:
    """All layers over text at places `start`, `start` + 1, … of its own cache.

    Args:
      decoder: whose layers.
      x_BLD: W continuations of each row.
      context: one entry per row; over the prompt's keys, where there are any, then the cache's.
      cache: keys and values of the text itself, written at `start`; None: the text is whole and is
        not continued, so nothing is kept.
      start: place of the first token in the cache.
      prompt: keys and values of the text before, one entry per row of the batch.
      between: as in `Decoder.run_layers`.
    """
    rotary = context.rotary
    if rotary is not None:
        copies = len(x_BLD) // len(rotary[0])
        rotary = jnp.repeat(rotary[0], copies, axis=0), jnp.repeat(rotary[1], copies, axis=0)

    def layer(block: Block, x: Array, cache: Cache | None, index: Array) -> tuple[Array, Any]:
        q, k, v = block.attention.heads(block.attention_norm(x), rotary)
        if cache is not None:
            # In the scan's carry these updates are in place; as its outputs they would be copies.
            cache = {
                name: jax.lax.dynamic_update_slice(cache[name], new[None], (index, 0, start, 0, 0))
                for name, new in (("k", k), ("v", v))
            }
            k, v = cache["k"][index], cache["v"][index]
        parts = [(k, v)] if prompt is None else [(prompt["k"][index], prompt["v"][index]), (k, v)]
        return block.join(x, block.attention.merge(attend(q, parts, context))), cache

    interval = len(decoder.layers)

    def group(carry, inputs):
        (x, cache), (blocks, extra, number) = carry, inputs
        for j, block in enumerate(blocks):
            if j == interval - 1:
                x = between[1](extra, pin_batch(x))
            x, cache = layer(block, pin_batch(x), cache, number * interval + j)
        return (x, cache), None

    def single(carry, inputs):
        (x, cache), (block, index) = carry, inputs
        return layer(block, pin_batch(x), cache, index), None

    num_layers, carry = decoder.config.num_layers, (x_BLD, cache)
    num_groups = num_layers // interval if interval else 0
    if num_groups:
        inputs = (list(decoder.layers), between[0], jnp.arange(num_groups))
        carry, _ = jax.lax.scan(group, carry, inputs)
    if decoder.tail is not None:
        indices = jnp.arange(num_groups * interval, num_layers)
        carry, _ = jax.lax.scan(single, carry, (decoder.tail, indices))
    return carry
