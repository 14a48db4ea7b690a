"""Which attention kernels a run uses, and whether they compute what plain attention does."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from flamingo_jax.models.decoder import alibi_slopes, segment_positions
from flamingo_jax.ops.attention import (
    AttentionChoice,
    Call,
    Kernel,
    attend,
    choose,
    device_in_force,
)
from flamingo_jax.ops.attention_xla import CausalRows, causal_mask
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import FRAMES


def attention_kernels(config: TrainConfig, mesh: Mesh) -> str:
    """Every part's kernel in one line, and why it is not the best of these devices."""
    with jax.set_mesh(mesh):
        device = device_in_force()
    parts: dict[Kernel, list[str]] = {}
    for part, call, wanted in attention_calls(config):
        parts.setdefault(choose(call, device, wanted), []).append(part)
    return "attention: " + "; ".join(f"{', '.join(p)}: {kernel}" for kernel, p in parts.items())


def attention_calls(config: TrainConfig) -> Iterator[tuple[str, Call, AttentionChoice]]:
    """The self-attentions of a training step, and the resampler's."""
    model, streams = config.model, config.streams.values()
    vision, resampler, decoder = model.encoder, model.connector, model.decoder
    if any(stream.row_images for stream in streams):
        tokens, latents = vision.num_patches + 1, resampler.num_latents
        call = Call(model.dtype, vision.head_width, tokens, tokens)
        yield "vision", call, vision.attention
        keys = FRAMES * vision.num_patches + latents
        yield "resampler", Call(model.dtype, resampler.head_dim, latents, keys), resampler.attention
    for length in sorted({stream.part_length for stream in streams}):
        call = Call(model.dtype, decoder.head_width, length, length, masked=True, causal=True)
        yield f"text of {length}", call, decoder.attention


def compare_attention(kv_heads: int = 2, length: int = 256) -> tuple[Kernel, float, float]:
    """A kernel of the device in force beside plain attention, in bfloat16.

    Returns: the kernel, how far its outputs and gradients are from those of float32, as a share of
    the largest, and how far plain attention's are. Causal rows, with segments and ALiBi.
    """
    shapes = [(2, length, heads, 64) for heads in (4, kv_heads, kv_heads, 4)]
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, gradient = map(jax.random.normal, keys, shapes)
    segments_BL = jnp.arange(length)[None] // jnp.array([[length], [length // 3]]) + 1
    positions_BL, slopes_H = segment_positions(segments_BL), alibi_slopes(4)
    distance_BLL = positions_BL[:, None, :] - positions_BL[:, :, None]
    mask, bias = causal_mask(segments_BL), slopes_H[:, None, None] * distance_BLL[:, None]
    causal = CausalRows(segments_BL, positions_BL, slopes_H)

    def results(dtype: str, wanted: AttentionChoice) -> list[Array]:
        def attention(q: Array, k: Array, v: Array) -> Array:
            return attend(q, k, v, mask_BxLS=mask, bias_BHLS=bias, causal=causal, wanted=wanted)

        def run(*inputs: Array) -> list[Array]:
            out, pull_back = jax.vjp(attention, *inputs)
            return [out, *pull_back(gradient.astype(dtype))]

        arrays = jax.jit(run)(*(x.astype(dtype) for x in qkv))
        return [array.astype(jnp.float32) for array in arrays]

    with jax.default_matmul_precision("highest"):
        exact = results("float32", "xla")
    distances = [
        max(
            float(jnp.abs(a - b).max() / jnp.abs(b).max())
            for a, b in zip(results("bfloat16", wanted), exact, strict=True)
        )
        for wanted in ("auto", "xla")
    ]
    call = Call("bfloat16", 64, length, length, masked=True, causal=True)
    return choose(call, device_in_force()), distances[0], distances[1]
