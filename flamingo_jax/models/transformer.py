"""The transformer layer of every encoder and decoder, and the one loop over layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.models.layers import ACTIVATIONS, Activation, LayerNorm, Linear, RMSNorm
from flamingo_jax.models.text import Sees
from flamingo_jax.ops.attention_kernels import AttentionChoice
from flamingo_jax.parallel.mesh import constrain_batch
from flamingo_jax.parallel.remat import RematPolicy, policy_for_new_modules, remat


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
    # "auto": the best kernel of the device, see ops/attention_kernels.py; "xla": plain attention.
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


def block_norm(
    config: BlockConfig, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> LayerNorm | RMSNorm:
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
    return LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Projections of multi-head attention: q, k and v of its input, `out` of what is gathered."""

    def __init__(self, config: BlockConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, bias = config.width, config.attention_bias
        q_width = config.num_heads * config.head_width
        kv_width = config.kv_heads * config.head_width
        self.query = Linear(width, q_width, bias=bias, split="out", dtype=dtype, rngs=rngs)
        self.key = Linear(width, kv_width, bias=bias, split="out", dtype=dtype, rngs=rngs)
        self.value = Linear(width, kv_width, bias=bias, split="out", dtype=dtype, rngs=rngs)
        self.out = Linear(q_width, width, bias=bias, split="in", dtype=dtype, rngs=rngs)

        def head_norm(norm_width: int) -> LayerNorm | RMSNorm | None:
            return (
                block_norm(config, norm_width, dtype=dtype, rngs=rngs) if config.qk_norm else None
            )

        self.query_norm, self.key_norm = head_norm(q_width), head_norm(kv_width)
        self.head_width = config.head_width

    def project(
        self, x_ND: Float[Array, "N D"]
    ) -> tuple[Float[Array, "N H K"], Float[Array, "N G K"], Float[Array, "N G K"]]:
        """Returns queries, keys and values."""
        q, k, v = self.query(x_ND), self.key(x_ND), self.value(x_ND)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (y.reshape(len(y), -1, self.head_width) for y in (q, k, v))
        return q, k, v


class MLP(nnx.Module):
    """y = down(act(up(x))), or down(act(gate(x)) · up(x)) where it is gated."""

    def __init__(self, config: BlockConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, hidden, bias = config.width, config.hidden_width, config.mlp_bias

        def widen() -> Linear:
            return Linear(width, hidden, bias=bias, split="out", dtype=dtype, rngs=rngs)

        self.up = widen()
        self.gate = widen() if config.gated_mlp else None
        self.down = Linear(hidden, width, bias=bias, split="in", dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        activation = ACTIVATIONS[self.activation]
        if self.gate is not None:
            return self.down(activation(self.gate(x)) * self.up(x))
        return self.down(activation(self.up(x)))


class Block(nnx.Module):
    """One layer: y = x + attention(norm(x)); y + mlp(norm(y)), or y + mlp(norm(x)) in parallel."""

    def __init__(self, config: BlockConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = block_norm(config, config.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = block_norm(config, config.width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.parallel_residual = config.parallel_residual

    def __call__(
        self, x_ND: Float[Array, "N D"], text: Sees, past: Any = None
    ) -> tuple[Float[Array, "N D"], Any]:
        """Returns the layer's output, and the keys and values that `text` keeps."""
        q, k, v = self.attention.project(self.attention_norm(x_ND))
        gathered, kept = text.attend(q, k, v, past)
        y_ND = x_ND + self.attention.out(gathered)
        return y_ND + self.mlp(self.mlp_norm(x_ND if self.parallel_residual else y_ND)), kept


class Layer(NamedTuple):
    """One layer of a stack, and the module inserted before it; None: none."""

    block: Any
    inserted: Any = None


class Kept(NamedTuple):
    """Holds what the two modules of a layer keep for later text; None: nothing."""

    block: Any = None
    inserted: Any = None


StackT = TypeVar("StackT")


@dataclass(frozen=True)
class LayerStack:
    """Layers of one shape, stacked, and modules inserted between them.

    Layers stand in groups of n: `groups[j]` holds layers j, j + n, j + 2n, …, and `tail` those left
    over at the end. One stack per place in the group: taking a layer out of one large stack inside
    of a scan would make rematerialisation save a second copy of the weights.

    Attributes:
      groups: n stacks of as many layers as there are groups.
      tail: the stack of the layers left over; None: there are none.
      inserted: a stack of modules, one per group, each standing before its group's last layer.
      remat: what a layer keeps for its gradient.
    """

    groups: Sequence[Any]
    tail: Any = None
    inserted: Any = None
    remat: RematPolicy = "none"

    def run(
        self,
        x_ND: Float[Array, "N D"],
        text: Any,
        images: Any = None,
        *,
        layers: Sequence[Layer] | None = None,
        past: Sequence[Kept] | None = None,
        watch: Callable[[Layer, Array], None] | None = None,
    ) -> tuple[Float[Array, "N D"], Any]:
        """Runs all layers: scanned, or one by one where `layers` are given.

        Args:
          x_ND: the tokens of all texts.
          text: what a block asks who sees whom.
          images: what an inserted module asks.
          layers: see `unstacked`.
          past: what earlier text kept for each of them.
          watch: is called with each of them, and with what enters it.

        Returns:
          The output, and what the layers keep: as `in_order` takes it, or by layer.
        """
        block = remat(type(self.groups[0]).__call__, self.remat)
        inserted = remat(type(self.inserted).__call__, policy_for_new_modules(self.remat))

        def several(x_ND, layers, past=None, watch=None):
            kept = []
            for layer, before in zip(layers, past or [Kept()] * len(layers), strict=True):
                if watch is not None:
                    watch(layer, x_ND)
                seen = None
                if layer.inserted is not None:
                    x_ND = constrain_batch(x_ND)
                    x_ND, seen = inserted(layer.inserted, x_ND, images, before.inserted)
                x_ND, own = block(layer.block, constrain_batch(x_ND), text, before.block)
                kept.append(Kept(own, seen))
            return x_ND, kept

        if layers is not None:
            x_ND, kept = several(x_ND, layers, past, watch)
            return constrain_batch(x_ND), kept
        x_ND, kept = jax.lax.scan(several, x_ND, self._group())
        tail = None
        if self.tail is not None:
            x_ND, (tail,) = jax.lax.scan(several, x_ND, [Layer(self.tail)])
        return constrain_batch(x_ND), (kept, tail)

    def unstacked(self) -> list[Layer]:
        """Returns the layers one by one.

        Take them before a loop over tokens: taken inside, their weights are copied out of their
        stacks for every token, as a scan over layers does, too.
        """
        tail = None if self.tail is None else Layer(self.tail)
        return in_order(self._group(), tail)

    def _group(self) -> list[Layer]:
        *first, last = self.groups
        return [*map(Layer, first), Layer(last, self.inserted)]


def in_order(groups: Sequence[StackT], tail: StackT | None) -> list[StackT]:
    """Returns the entries of stacks one by one, layer by layer; see `LayerStack`."""

    def entry(stacked: Any, index: int) -> Any:
        return jax.tree.map(lambda x: x[index], stacked)

    def count(stacked: Any) -> int:
        return len(jax.tree.leaves(stacked)[0])

    entries = [entry(stacked, i) for i in range(count(groups)) for stacked in groups]
    return entries + [entry(tail, i) for i in range(0 if tail is None else count(tail))]


def locate(path: str, num_layers: int, interval: int = 1) -> tuple[str, range | None]:
    """Returns a parameter's path without its layer, and the numbers of the layers stacked in it.

    Args:
      path: below a module whose layers are `layers` (or, in groups, `layers/0`, …) and `tail`.
      num_layers: of the module.
      interval: layers in a group, see `LayerStack`.
    """
    stack, _, rest = path.partition("/")
    if stack == "tail":
        return f"layer/{rest}", layer_numbers(num_layers, interval, None)
    if stack != "layers":
        return path, None
    position, _, below = rest.partition("/")
    if position.isdecimal():
        return f"layer/{below}", layer_numbers(num_layers, interval, int(position))
    return f"layer/{rest}", range(num_layers)


def layer_numbers(num_layers: int, interval: int, position: int | None) -> range:
    """Returns the numbers of the layers that `groups[position]` holds; None: that `tail` holds."""
    whole = num_layers - num_layers % interval
    return range(whole, num_layers) if position is None else range(position, whole, interval)
