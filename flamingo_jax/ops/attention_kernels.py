"""Which attention kernel a platform has for which shapes, and how each is called.

GPUs: cuDNN's. TPUs: splash attention, for causal rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from flamingo_jax.parallel.mesh import head_axis, row_axes

AttentionChoice = Literal["auto", "xla"]  # "xla": never a kernel
NAMES = {"xla": "XLA", "cudnn": "cuDNN", "splash": "splash"}
SPLASH_BLOCKS = (512, 256, 128)  # the largest that divides the length; a kernel needs 128


@dataclass(frozen=True)
class Device:
    """Holds what decides of a device. `lacks`: why it has no kernel of its own, if so."""

    platform: str
    lacks: str = ""


@dataclass(frozen=True)
class Call:
    """Holds what decides of one attention: shapes, and whether keys are hidden, by `CausalRows` or
    otherwise."""

    dtype: str
    head_width: int
    queries: int
    keys: int
    masked: bool = False
    causal: bool = False


class Kernel(NamedTuple):
    """The chosen one, and why it is not the device's best."""

    name: Literal["xla", "cudnn", "splash"]
    reason: str = ""

    def __str__(self) -> str:
        return NAMES[self.name] + (f" ({self.reason})" if self.reason else "")


def choose(call: Call, device: Device, wanted: AttentionChoice = "auto") -> Kernel:
    """Returns the kernel for this attention on this device."""
    best: dict[str, tuple[Literal["cudnn", "splash"], Callable[[Call], str]]] = {
        "gpu": ("cudnn", _cudnn_refuses),
        "tpu": ("splash", _splash_refuses),
    }
    if device.platform not in best:
        return Kernel("xla")
    if wanted == "xla":
        return Kernel("xla", "as configured")
    name, refuses = best[device.platform]
    reason = device.lacks or refuses(call)
    return Kernel("xla", reason) if reason else Kernel(name)


def _cudnn_refuses(call: Call) -> str:
    if call.dtype != "bfloat16":
        return f"{call.dtype}; cuDNN takes bfloat16"
    if call.head_width % 8 or call.head_width > 128:
        return f"heads {call.head_width} wide; cuDNN takes multiples of 8 up to 128"
    if call.masked and (call.queries % 2 or call.keys % 2):
        return f"{call.queries} × {call.keys} tokens with a mask; cuDNN takes even numbers"
    return ""


def _splash_refuses(call: Call) -> str:
    if call.dtype != "bfloat16":
        return f"{call.dtype}; splash takes bfloat16"
    if not call.causal:
        return "not causal; splash is for causal rows"
    if call.queries % SPLASH_BLOCKS[-1]:
        return f"{call.queries} tokens; splash takes multiples of {SPLASH_BLOCKS[-1]}"
    return ""


def device_in_force() -> Device:
    """Returns what the program being traced will run on."""
    platform = _platform()
    return Device(platform, _gpu_lacks() if platform == "gpu" else "")


def _platform() -> str:
    """Names the platform of the mesh in force, which need not be here, or the default one."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if described is None else described.platform


@lru_cache
def _gpu_lacks() -> str:
    x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(lambda x: jax.nn.dot_product_attention(x, x, x, implementation="cudnn"), x)
    except RuntimeError:  # on AMD's GPUs, and where a step is only planned
        return "cuDNN is not installed"
    if jax.default_backend() == "gpu":
        capability = jax.local_devices()[0].compute_capability
        if float(capability) < 8:
            return f"compute capability {capability}; cuDNN's attention needs 8.0"
    return ""


def cudnn(
    q_BLHK: Float[Array, "B L H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    bias_BxLS: Float[Array, "B #H L S"] | None,
    *,
    is_causal: bool,
) -> Float[Array, "B L H K"]:
    """Runs cuDNN's attention, on each device's rows and heads. `bias`: in the type of q."""

    def local(q, k, v, bias=None):
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias, is_causal=is_causal, implementation="cudnn"
        )

    if bias_BxLS is None:
        return _on_each_device(local, (q_BLHK, k_BSGK, v_BSGK))
    heads = head_axis(k_BSGK.shape[2]) if bias_BxLS.shape[1] > 1 else None
    spec = PartitionSpec(row_axes(len(q_BLHK)), heads)
    return _on_each_device(local, (q_BLHK, k_BSGK, v_BSGK), (bias_BxLS, spec))


def splash(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[Array, "B L"],
    positions_BL: Int[Array, "B L"],
    slopes_H: Float[Array, "H"] | None,
) -> Float[Array, "B L H K"]:
    """Runs splash attention over causal rows, on each device's rows and heads."""
    q_BLHK = q_BLHK * jnp.asarray(q_BLHK.shape[-1] ** -0.5, q_BLHK.dtype)
    if slopes_H is not None:
        q_BLHK, k_BLGK = with_alibi(q_BLHK, k_BLGK, slopes_H, positions_BL)
    local = partial(_splash_of_device, interpret=_platform() != "tpu")
    segments = segments_BL, PartitionSpec(row_axes(len(q_BLHK)))
    return _on_each_device(local, (q_BLHK, k_BLGK, v_BLGK), segments)


def with_alibi(
    q_BLHK: Float[Array, "B L H K"],
    k_BSGK: Float[Array, "B S G K"],
    slopes_H: Float[Array, "H"],
    positions_BS: Int[Array, "B S"],
) -> tuple[Float[Array, "B L H K6"], Float[Array, "B S G K6"]]:
    """ALiBi as six more features of queries and keys, so that no kernel has to read a bias.

    The bias of query i and key j is slope · (position j − position i), and what depends on i alone
    makes no difference to a softmax. The slope is cut into three parts and the position into two,
    which bfloat16 holds exactly up to 2¹⁶ positions; a kernel sums products in float32.
    """
    parts, rest_H = [], slopes_H
    for _ in range(3):
        # Not a cast and back, which XLA may leave out.
        parts.append(jax.lax.reduce_precision(rest_H, exponent_bits=8, mantissa_bits=7))
        rest_H = rest_H - parts[-1]
    slopes_H6 = jnp.stack([part for part in parts for _ in range(2)], axis=-1)
    low_BS = positions_BS % 256
    positions_BS6 = jnp.stack([positions_BS - low_BS, low_BS] * 3, axis=-1)

    def append(x: Array, features: Array) -> Array:
        features = jnp.broadcast_to(features, (*x.shape[:-1], 6)).astype(x.dtype)
        return jnp.concatenate([x, features], axis=-1)

    return append(q_BLHK, slopes_H6), append(k_BSGK, positions_BS6[:, :, None])


def _splash_of_device(q_BLHK, k_BLGK, v_BLGK, segments_BL, *, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # it takes a second

    length, heads = q_BLHK.shape[1:3]
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )

    def row(q_LHK, k_LGK, v_LGK, segments_L):
        heads_first = (x.swapaxes(0, 1) for x in (q_LHK, k_LGK, v_LGK))
        return kernel(*heads_first, splash.SegmentIds(segments_L, segments_L)).swapaxes(0, 1)

    return jax.vmap(row)(q_BLHK, k_BLGK, v_BLGK, segments_BL)


def _on_each_device(
    local: Callable[..., Array],
    qkv: tuple[Array, Array, Array],
    *others: tuple[Array, PartitionSpec],
) -> Array:
    """`local` on each device's rows and heads: the compiler cannot split a kernel."""
    arrays = (*qkv, *(array for array, _ in others))
    if not jax.sharding.get_abstract_mesh().axis_names:
        return local(*arrays)
    spec = PartitionSpec(row_axes(len(qkv[0])), None, head_axis(qkv[1].shape[2]))
    specs = (spec, spec, spec, *(spec for _, spec in others))
    # No type that says over which axes a value varies: kernels do not state theirs.
    return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(*arrays)
