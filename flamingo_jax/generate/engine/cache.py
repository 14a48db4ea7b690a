"""The decoder's layers over text whose earlier keys and values are kept.

A prompt's layers are scanned, and their keys and values come back as one dict {"k", "v"} of arrays
[layers, B, G, S, K]. Text that continues a prompt attends to two parts: the prompt's, read only and
one per row however many beams or answers continue it, and its own, which is passed in and returned.
Its layers are not scanned: inside the loop over new tokens, a scan would copy every weight out of
its stack for every token. Keys stand head by head, as attention reads them, for the same reason.
Letters as in `layers.py`; W continuations of a row stand in one batch of B · W rows, row by row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.models.block import AttentionContext, Block, Rotary
from flamingo_jax.models.decoder import Decoder
from flamingo_jax.parallel.mesh import constrain_batch

KeysValues = tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]]
PromptCache = dict[str, Float[Array, "layers B G S K"]]
Cache = list[KeysValues]  # of a continuation, layer by layer


class Layer(NamedTuple):
    """One layer of the decoder and what is fixed while text runs through it."""

    block: Block
    before: Any  # what stands before the block (see `run_layers`); None: nothing
    prompt: KeysValues


def empty_cache(decoder: Decoder, rows: int, length: int) -> Cache:
    config = decoder.config
    empty = jnp.zeros((rows, config.kv_heads, length, config.head_width), decoder.dtype)
    return [(empty, empty)] * config.num_layers


def attend(
    q_BLHK: Float[Array, "BW L H K"], parts: Sequence[KeysValues], context: AttentionContext
) -> Float[Array, "BW L H K"]:
    """Attention over the keys of all parts together.

    A part has one entry per row of the batch, or one per continuation. The context's mask and bias
    are per row: [B, 1 or H, L, keys of all parts].
    """
    mask_BxLS, bias_BHLS = context.mask_BxLS, context.bias_BHLS
    assert mask_BxLS is not None
    rows, (_, length, _, head_width) = len(mask_BxLS), q_BLHK.shape
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
    seen = mask_BxLS[:, :, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, score_BGWLrS, jnp.finfo(jnp.float32).min))
    y_BGWLrK, first = jnp.zeros_like(q_BGWLrK), 0
    for _, v_BGSK in parts:
        size, _, num_keys, _ = v_BGSK.shape
        part = per_part(weights[..., first : first + num_keys].astype(v_BGSK.dtype), size)
        y_BGWLrK += together(jnp.einsum("bgqs,bgsk->bgqk", part, v_BGSK))
        first += num_keys
    return jnp.moveaxis(y_BGWLrK, 1, 3).reshape(q_BLHK.shape)


def _heads(block: Block, x: Array, rotary: Rotary | None) -> tuple[Array, KeysValues]:
    q_BLHK, k_BLGK, v_BLGK = block.attention.heads(block.attention_norm(x), rotary)
    return q_BLHK, (k_BLGK.swapaxes(1, 2), v_BLGK.swapaxes(1, 2))


def run_prompt(
    decoder: Decoder,
    x_BLD: Float[Array, "B L D"],
    context: AttentionContext,
    *,
    between: tuple[Any, Callable[[Any, Array], Array]],
) -> tuple[Float[Array, "B L D"], PromptCache]:
    """All layers over whole texts, and their keys and values. `between`: as in
    `Decoder.run_layers`."""

    def layer(x: Array, block: Block) -> tuple[Array, KeysValues]:
        x = constrain_batch(x)
        q, own = _heads(block, x, context.rotary)
        return block.join(x, block.attention.merge(attend(q, [own], context))), own

    def group(x, inputs):
        (*first, last), extra = inputs
        kept = []
        for block in first:
            x, own = layer(x, block)
            kept.append(own)
        x, own = layer(between[1](extra, constrain_batch(x)), last)
        return x, [*kept, own]

    stacks = []
    if decoder.layers:
        x_BLD, kept = jax.lax.scan(group, x_BLD, (list(decoder.layers), between[0]))
        # One entry per position in the group, each [groups, …] → [groups · interval, …]
        stacks.append(jax.tree.map(lambda *a: jnp.stack(a, 1).reshape(-1, *a[0].shape[1:]), *kept))
    if decoder.tail is not None:
        x_BLD, tail = jax.lax.scan(layer, x_BLD, decoder.tail)
        stacks.append(tail)
    k, v = jax.tree.map(lambda *a: jnp.concatenate(a), *stacks)
    return x_BLD, {"k": k, "v": v}


def unstack(decoder: Decoder, before: Any, prompt: PromptCache) -> list[Layer]:
    """The layers one by one. `before`: a stack with one entry per group, as in `run_layers`."""
    interval, num_layers = len(decoder.layers), decoder.config.num_layers
    num_scanned = num_layers - num_layers % interval if interval else 0
    layers = []
    for i in range(num_layers):
        group, position = divmod(i, interval) if i < num_scanned else (i - num_scanned, -1)
        stacked = decoder.layers[position] if i < num_scanned else decoder.tail
        has_before = i < num_scanned and position == interval - 1
        layers.append(
            Layer(
                _entry(stacked, group),
                _entry(before, group) if has_before else None,
                (prompt["k"][i], prompt["v"][i]),
            )
        )
    return layers


def _entry(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], stacked)


def run_continuation(
    layers: Sequence[Layer],
    x_BLD: Float[Array, "BW L D"],
    context: AttentionContext,
    cache: Cache | None,
    *,
    start: int | Int[Array, ""],
    between: Callable[[Any, Array], Array],
) -> tuple[Float[Array, "BW L D"], Cache | None]:
    """All layers over text at places `start`, `start` + 1, … of its own cache.

    Args:
      layers: see `unstack`.
      x_BLD: W continuations of each row.
      context: one entry per row; over the prompt's keys, then the cache's.
      cache: keys and values of the text itself, written at `start`; None: the text is whole and is
        not continued, so nothing is kept.
      start: place of the first token in the cache.
      between: how to apply what stands before a layer.
    """
    rotary = context.rotary
    if rotary is not None:
        copies = len(x_BLD) // len(rotary[0])
        rotary = jnp.repeat(rotary[0], copies, axis=0), jnp.repeat(rotary[1], copies, axis=0)
    grown: Cache = []
    for index, (block, before, prompt) in enumerate(layers):
        if before is not None:
            x_BLD = between(before, constrain_batch(x_BLD))
        x_BLD = constrain_batch(x_BLD)
        q, (k, v) = _heads(block, x_BLD, rotary)
        if cache is not None:
            old_k, old_v = cache[index]
            k = jax.lax.dynamic_update_slice_in_dim(old_k, k, start, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(old_v, v, start, axis=2)
            grown.append((k, v))
        attended = attend(q, [prompt, (k, v)], context)
        x_BLD = block.join(x_BLD, block.attention.merge(attended))
    return x_BLD, None if cache is None else grown
