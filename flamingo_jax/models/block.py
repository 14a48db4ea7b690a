"""Layers shared by the vision encoder, the language model and the parts that join them.

Shape letters, here and in every file of this folder:
B batch, L text length, S key length, D width, H query heads, G key/value heads, K head width,
T images per row, F frames per image, N patch tokens per frame, R latents per image, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flamingo_jax.models.text import Texts
from flamingo_jax.ops.attention import AttentionChoice, attend
from flamingo_jax.ops.attention_xla import CausalRows
from flamingo_jax.ops.fused import LINEAR_OUTPUT, SAVE_ELEMENTWISE, gelu, normalize

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
ModuleT = TypeVar("ModuleT", bound=nnx.Module)
Rotary = tuple[Float[Array, "B L rot"], Float[Array, "B L rot"]]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One pre-norm transformer layer. The defaults are those of GPT-2-like decoders."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 0  # 0: as many as query heads; fewer: grouped-query attention
    head_dim: int = 0  # 0: width / num_heads
    mlp_width: int = 0  # 0: 4 * width
    activation: Activation = "gelu"
    gated_mlp: bool = False  # down(act(gate(x)) * up(x)), as in LLaMA
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False  # norms of queries and keys over the full width, before the head split
    parallel_residual: bool = False  # x + attention(norm1(x)) + mlp(norm2(x)), as in GPT-NeoX
    # "auto": the best kernel of the device, see models/attention.py; "xla": plain attention.
    attention: AttentionChoice = "auto"

    def __post_init__(self) -> None:
        if not self.head_dim and self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide by num_heads {self.num_heads}")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide by num_kv_heads {self.kv_heads}"
            )

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.num_heads

    @property
    def hidden_width(self) -> int:
        return self.mlp_width or 4 * self.width


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionContext:
    """What every layer of a stack shares: computed once, outside the scan over layers."""

    mask_BxLS: Bool[Array, "B 1 L S"] | None = None
    bias_BHLS: Float[Array, "B H L S"] | None = None
    rotary: Rotary | None = None  # cosine and sine per position
    causal: CausalRows | None = None  # what mask and bias were made of, if nothing else


def linear(
    in_width: int, out_width: int, *, bias: bool, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Linear:
    return Linear(in_width, out_width, use_bias=bias, dtype=dtype, rngs=rngs)


class Linear(nnx.Linear):
    """A linear layer of all leading axes as one, so that its gradients are plain matmuls: for
    several contracted axes, XLA on a CPU writes transposed copies."""

    def __call__(self, inputs: Any, out_sharding: Any = None) -> Float[Array, "... E"]:
        y_NE = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        y_NE = checkpoint_name(y_NE, LINEAR_OUTPUT)
        return y_NE.reshape(*inputs.shape[:-1], y_NE.shape[-1])


def layer_norm(
    width: int, *, eps: float = 1e-5, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    return LayerNorm(width, epsilon=eps, use_bias=bias, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """By `normalize`: nnx's one-pass variance loses digits that parity with PyTorch needs, and
    differentiating it keeps more."""

    def __call__(self, x: Any, *, mask: Any = None) -> Float[Array, "... D"]:
        assert mask is None
        assert self.scale is not None
        bias_D = None if self.bias is None else self.bias[...]
        return normalize(x, self.scale[...], bias_D, self.epsilon, self.dtype or x.dtype)


def standardize(
    x_BND: Float[Array, "B N D"], *, eps: float = 1e-5, dtype: DTypeLike
) -> Float[Array, "B N D"]:
    """`layer_norm` without scale and bias."""
    x_BND = x_BND.astype(jnp.float32)
    centered_BND = x_BND - x_BND.mean(axis=-1, keepdims=True)
    variance_BNx = jnp.mean(centered_BND**2, axis=-1, keepdims=True)
    return (centered_BND * jax.lax.rsqrt(variance_BNx + eps)).astype(dtype)


def block_norm(
    config: BlockConfig, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm | nnx.RMSNorm:
    if config.norm == "rmsnorm":
        return nnx.RMSNorm(width, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
    return layer_norm(width, eps=config.norm_eps, bias=config.norm_bias, dtype=dtype, rngs=rngs)


def rotate(x_BLHK: Float[Array, "B L H K"], rotary: Rotary) -> Float[Array, "B L H K"]:
    """Rotary position embedding (arXiv 2104.09864) of the first features of each head.

    Feature i is paired with feature i + rot/2, as GPT-NeoX and LLaMA do. Rotation is in float32.
    """
    cos, sin = (r[:, :, None, :] for r in rotary)
    rotated_width = cos.shape[-1]
    x, rest = x_BLHK[..., :rotated_width].astype(cos.dtype), x_BLHK[..., rotated_width:]
    left, right = jnp.split(x, 2, axis=-1)
    x = x * cos + jnp.concatenate([-right, left], axis=-1) * sin
    return jnp.concatenate([x.astype(x_BLHK.dtype), rest], axis=-1)


class Attention(nnx.Module):
    """Multi-head self-attention with optional grouped-query heads, rotary and qk-norm."""

    def __init__(self, config: BlockConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, bias = config.width, config.attention_bias
        q_width = config.num_heads * config.head_width
        kv_width = config.kv_heads * config.head_width
        self.query = linear(width, q_width, bias=bias, dtype=dtype, rngs=rngs)
        self.key = linear(width, kv_width, bias=bias, dtype=dtype, rngs=rngs)
        self.value = linear(width, kv_width, bias=bias, dtype=dtype, rngs=rngs)
        self.out = linear(q_width, width, bias=bias, dtype=dtype, rngs=rngs)

        def head_norm(norm_width: int) -> nnx.LayerNorm | nnx.RMSNorm | None:
            return (
                block_norm(config, norm_width, dtype=dtype, rngs=rngs) if config.qk_norm else None
            )

        self.query_norm, self.key_norm = head_norm(q_width), head_norm(kv_width)
        self.head_width = config.head_width
        self.kernel = config.attention

    def together(
        self, x_ND: Float[Array, "N D"], texts: Texts, contexts: Sequence[AttentionContext]
    ) -> Float[Array, "N D"]:
        """Every text attends to itself."""
        heads = zip(*map(texts.split, self._project(x_ND)), contexts, strict=True)
        attended_ND = texts.join([self._attend(*one) for one in heads])
        return self.out(checkpoint_name(attended_ND, SAVE_ELEMENTWISE))

    def _attend(
        self,
        q_BLD: Float[Array, "B L D"],
        k_BLE: Float[Array, "B L E"],
        v_BLE: Float[Array, "B L E"],
        context: AttentionContext,
    ) -> Float[Array, "B L D"]:
        y_BLHK = attend(
            *self._by_head((q_BLD, k_BLE, v_BLE), context.rotary),
            mask_BxLS=context.mask_BxLS,
            bias_BHLS=context.bias_BHLS,
            causal=context.causal,
            wanted=self.kernel,
        )
        return y_BLHK.reshape(q_BLD.shape)

    def heads(
        self, x_BLD: Float[Array, "B L D"], rotary: Rotary | None
    ) -> tuple[Float[Array, "B L H K"], Float[Array, "B L G K"], Float[Array, "B L G K"]]:
        """Queries, keys and values, as they are attended to and as they are cached."""
        return self._by_head(self._project(x_BLD), rotary)

    def _project(self, x: Float[Array, "... D"]) -> tuple[Array, Array, Array]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return q, k, v

    def _by_head(
        self, projected: tuple[Array, Array, Array], rotary: Rotary | None
    ) -> tuple[Float[Array, "B L H K"], Float[Array, "B L G K"], Float[Array, "B L G K"]]:
        q_BLHK, k_BLGK, v_BLGK = (y.reshape(*y.shape[:2], -1, self.head_width) for y in projected)
        if rotary is not None:
            q_BLHK, k_BLGK = rotate(q_BLHK, rotary), rotate(k_BLGK, rotary)
        return q_BLHK, k_BLGK, v_BLGK

    def merge(self, y_BLHK: Float[Array, "B L H K"]) -> Float[Array, "B L D"]:
        return self.out(y_BLHK.reshape(*y_BLHK.shape[:2], -1))


class MLP(nnx.Module):
    """Two linear layers around an activation, or three where it is gated."""

    def __init__(self, config: BlockConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, hidden, bias = config.width, config.hidden_width, config.mlp_bias

        def widen() -> nnx.Linear:
            return linear(width, hidden, bias=bias, dtype=dtype, rngs=rngs)

        self.up = widen()
        self.gate = widen() if config.gated_mlp else None
        self.down = linear(hidden, width, bias=bias, dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        activation = ACTIVATIONS[self.activation]
        if self.gate is not None:
            return self.down(activation(self.gate(x)) * self.up(x))
        return self.down(activation(self.up(x)))


class Block(nnx.Module):
    """One transformer layer, of the vision encoder and of every language-model family."""

    def __init__(self, config: BlockConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = block_norm(config, config.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = block_norm(config, config.width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.parallel_residual = config.parallel_residual

    def __call__(
        self, x_BLD: Float[Array, "B L D"], context: AttentionContext
    ) -> Float[Array, "B L D"]:
        texts = Texts.of([x_BLD])
        return texts.split(self.together(texts.join([x_BLD]), texts, [context]))[0]

    def together(
        self, x_ND: Float[Array, "N D"], texts: Texts, contexts: Sequence[AttentionContext]
    ) -> Float[Array, "N D"]:
        """The layer for several texts, the tokens of all of them in one array."""
        attention_ND = self.attention.together(self.attention_norm(x_ND), texts, contexts)
        return self.join(x_ND, attention_ND)

    def join(self, x: Float[Array, "... D"], attention: Array) -> Float[Array, "... D"]:
        """The layer's output, from its input and what its attention made of it."""
        attended = x + attention
        return attended + self.mlp(self.mlp_norm(x if self.parallel_residual else attended))


class FeedForward(nnx.Module):
    """LayerNorm, widening, erf-GELU, narrowing; no biases (OpenFlamingo `FeedForward`)."""

    def __init__(self, width: int, multiple: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.up = linear(width, multiple * width, bias=False, dtype=dtype, rngs=rngs)
        self.down = linear(multiple * width, width, bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... D"], gate: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "... D"]:
        """Times `gate`, before `down`: after it, the gate's gradient would need the output kept."""
        return self.down(gate * ACTIVATIONS["gelu"](self.up(self.norm(x))))


def stack(make: Callable[[nnx.Rngs], ModuleT], num_layers: int, rngs: nnx.Rngs) -> ModuleT:
    """`num_layers` modules as one whose every parameter has a leading layer axis, for `scan`."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), num_layers))
