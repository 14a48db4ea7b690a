"""Which attention kernels a run uses, and whether they compute what plain attention does."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from flamingo_jax.models.decoder import alibi_slopes
from flamingo_jax.models.text import segment_positions
from flamingo_jax.ops.attention import CausalRows, attention
from flamingo_jax.ops.attention_kernels import (
    AttentionChoice,
    Call,
    Kernel,
    choose,
    device_in_force,
)
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import batch_size


def attention_kernels(config: TrainConfig, mesh: Mesh) -> str:
    """Every part's kernel in one line, and why it is not the best of these devices."""
    with jax.set_mesh(mesh):
        device = device_in_force()
    parts: dict[Kernel, list[str]] = {}
    for part, call, wanted in attention_calls(config):
        parts.setdefault(choose(call, device, wanted), []).append(part)
    return "attention: " + "; ".join(f"{', '.join(p)}: {kernel}" for kernel, p in parts.items())


def attention_calls(config: TrainConfig) -> Iterator[tuple[str, Call, AttentionChoice]]:
    """Yields the attentions of a training step that a kernel may compute."""
    found: dict[str, tuple[Call, AttentionChoice]] = {}
    for stream in config.streams.values():
        for account in config.model.accounts(batch_size(stream)):
            for s in account.scores:
                if s.name and s.count:
                    shape = s.head_width, s.num_queries, s.num_keys
                    call = Call(config.model.dtype, *shape, masked=s.causal, causal=s.causal)
                    found[s.name] = call, s.choice
    for name in sorted(found, key=lambda name: found[name][0].causal * found[name][0].queries):
        yield name, *found[name]


def compare_attention(kv_heads: int = 2, length: int = 256) -> tuple[Kernel, float, float]:
    """Runs a kernel of the device in force beside plain attention, in bfloat16.

    Causal rows, with segments and ALiBi.

    Returns: the kernel, how far its outputs and gradients are from those of float32, as a share of
    the largest, and how far plain attention's are.
    """
    shapes = [(2, length, heads, 64) for heads in (4, kv_heads, kv_heads, 4)]
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, gradient = map(jax.random.normal, keys, shapes)
    segments_BL = jnp.arange(length)[None] // jnp.array([[length], [length // 3]]) + 1
    causal = CausalRows(segments_BL, segment_positions(segments_BL), alibi_slopes(4))

    def results(dtype: str, choice: AttentionChoice) -> list[Array]:
        def run(*inputs: Array) -> list[Array]:
            out, pull_back = jax.vjp(partial(attention, causal=causal, choice=choice), *inputs)
            return [out, *pull_back(gradient.astype(dtype))]

        arrays = jax.jit(run)(*(x.astype(dtype) for x in qkv))
        return [array.astype(jnp.float32) for array in arrays]

    with jax.default_matmul_precision("highest"):
        exact = results("float32", "xla")
    distances = [
        max(
            float(jnp.abs(a - b).max() / jnp.abs(b).max())
            for a, b in zip(results("bfloat16", choice), exact, strict=True)
        )
        for choice in ("auto", "xla")
    ]
    call = Call("bfloat16", 64, length, length, masked=True, causal=True)
    return choose(call, device_in_force()), distances[0], distances[1]
