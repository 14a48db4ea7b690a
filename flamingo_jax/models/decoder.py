"""The one decoder-only language model: MPT, GPT-NeoX, OPT and LLaMA are settings of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flamingo_jax.models.layers import Linear, stack, value
from flamingo_jax.models.matmuls import Account, BatchSize, Layers, Reads, Scores, Stage, Weights
from flamingo_jax.models.text import Rotary, Text, TokenLayout, segment_positions
from flamingo_jax.models.transformer import Block, BlockConfig, LayerStack, block_norm
from flamingo_jax.ops.attention import CausalRows, prepared
from flamingo_jax.ops.cross_entropy import chunked_nll
from flamingo_jax.ops.vocabulary_logits import vocabulary_logits
from flamingo_jax.parallel.fsdp import gathered
from flamingo_jax.parallel.mesh import constrain_batch
from flamingo_jax.parallel.remat import RematPolicy
from flamingo_jax.parallel.sharding import ParamFacts


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(BlockConfig):
    """A decoder-only language model.

    Token ids: `vocab_size` pretrained rows, then `num_new_tokens` rows that Flamingo trains
    (`<|endofchunk|>`, `<image>`), then `num_pad_tokens` (0 or 1) that nothing trains.
    """

    parameters: ClassVar[str] = "decoder"  # what their paths begin with
    vocab_size: int
    num_new_tokens: int = 0
    num_pad_tokens: int = 0
    position: Literal["alibi", "rotary", "learned"] = "rotary"
    alibi_max: float = 8.0  # the last head's slope is 2 ** -alibi_max
    rotary_fraction: float = 1.0  # of each head's features; GPT-NeoX's `rotary_pct`
    rotary_theta: float = 10_000.0
    max_length: int = 2048  # learned positions; other kinds need no table
    position_offset: int = 0  # rows of the position table before position 0; OPT has 2
    tie_head: bool = True

    @property
    def total_vocab_size(self) -> int:
        return self.vocab_size + self.num_new_tokens + self.num_pad_tokens

    def heads(self) -> dict[str, int]:
        """Returns what a mesh's `tensor` axis must divide."""
        return {"num_heads": self.num_heads, "num_kv_heads": self.kv_heads}

    def accounts(self, size: BatchSize, interval: int) -> tuple[Account, Account]:
        """Returns layers and head. `interval`: layers in a group, see `LayerStack`."""
        text, left_over = size.rows * size.length, self.num_layers % interval
        each = {"layers": ("text", self.num_layers - left_over), "tail": ("tail", left_over)}
        part_length = size.length // size.parts
        layers = Account(
            part="lm",
            parameters=self.parameters,
            stages=(Stage("text", r"^(embedding|positions|layers)"), Stage("tail", r"^tail/")),
            weights=tuple(
                Weights(rf"^{path}/.*kernel$", text, stage, stage)
                for path, (stage, _) in each.items()
            ),
            scores=tuple(
                Scores(
                    pattern=rf"^{path}/.*out/kernel$",
                    count=count * size.rows * size.parts,
                    num_heads=self.num_heads,
                    head_width=self.head_width,
                    num_queries=part_length,
                    num_keys=part_length,
                    stage=stage,
                    keys=stage,
                    causal=True,
                    parallel=self.parallel_residual,
                    name=f"text of {part_length}",
                    choice=self.attention,
                )
                for path, (stage, count) in each.items()
            ),
            layers=tuple(
                Layers(count * self.width * text, stage) for stage, count in each.values()
            ),
            added=r"/(out|down)/kernel$" if self.parallel_residual else r"/down/kernel$",
        )
        head = Account(
            part="head",
            parameters=self.parameters,
            stages=(Stage("head", r"^norm/"),),
            weights=(Weights(r"^embedding/" if self.tie_head else r"^head/", text, "head"),),
            reads=(Reads(text * self.width, None, "head"),),
        )
        return layers, head

    def check_length(self, length: int) -> None:
        """ValueError: a text of this many tokens has no learned positions."""
        if self.position == "learned" and length > self.max_length:
            raise ValueError(
                f"text of {length} tokens is longer than the "
                f"{self.max_length} learned positions (decoder.max_length): give a shorter one"
            )


def alibi_slopes(num_heads: int, alibi_max: float = 8.0) -> Float[Array, "H"]:
    """Slopes of ALiBi (arXiv 2108.12409). For head counts that are no power of two, as MPT does:
    the slopes of the next power of two, every second one first."""
    padded = 2 ** math.ceil(math.log2(num_heads))
    slopes = 2.0 ** (-alibi_max / padded * jnp.arange(1, padded + 1))
    if padded != num_heads:
        slopes = jnp.concatenate([slopes[1::2], slopes[::2]])[:num_heads]
    return slopes


class Embedding(nnx.Module):
    """Token rows in three parameters: pretrained, new (trained), pad (never trained).

    Kept apart so that the gradient of the large table is never formed, and its rows stay bitwise
    as they were. Lookup and the tied head see one table.
    """

    def __init__(self, config: DecoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def rows(count: int, facts: ParamFacts) -> nnx.Param | None:
            if not count:
                return None
            scale = config.width**-0.5  # so that a tied head starts with logits of order one
            drawn = jax.random.normal(rngs.params(), (count, config.width))
            return nnx.Param(scale * drawn, facts=facts)

        self.table = rows(config.vocab_size, ParamFacts(split=0, contracted=-1))
        self.new_rows = rows(config.num_new_tokens, ParamFacts())
        self.pad_rows = rows(config.num_pad_tokens, ParamFacts())
        self.dtype = dtype

    def rows(self) -> tuple[Float[Array, "rows D"], ...]:
        """Returns the table's parts, one after another."""
        parts = (self.table, self.new_rows, self.pad_rows)
        return tuple(gathered(part, self.dtype) for part in parts if part is not None)

    def __call__(self, tokens_BL: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        def look_up(part: Array, first: int) -> Array:
            return part[jnp.clip(tokens_BL - first, 0, len(part) - 1)].astype(self.dtype)

        table, *others = self.rows()
        x_BLD, first = look_up(table, 0), len(table)
        for part in others:
            x_BLD = jnp.where(tokens_BL[..., None] < first, x_BLD, look_up(part, first))
            first += len(part)
        return x_BLD


class Decoder(nnx.Module):
    """A decoder-only language model: embedding, layers, norm, head.

    Its layers stand in groups of `interval`, so that modules may be inserted; see `LayerStack`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        interval: int = 1,
        remat: RematPolicy = "none",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def make(block_rngs: nnx.Rngs) -> Block:
            return Block(config, dtype=dtype, rngs=block_rngs)

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.embedding = Embedding(config, dtype=dtype, rngs=rngs)
        self.positions = (
            table(config.max_length + config.position_offset, config.width)
            if config.position == "learned"
            else None
        )
        num_groups, left_over = divmod(config.num_layers, interval)
        self.layers = nnx.List([stack(make, num_groups, rngs) for _ in range(interval)])
        self.tail = stack(make, left_over, rngs) if left_over else None
        self.norm = block_norm(config, config.width, dtype=dtype, rngs=rngs)
        self.head = (
            None
            if config.tie_head
            else Linear(
                config.width,
                config.total_vocab_size,
                bias=False,
                split="out",
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.config = config
        self.remat = remat
        self.dtype = dtype

    def stack(self, inserted: Any = None) -> LayerStack:
        """Returns the layers, with a stack of modules inserted: one per group."""
        return LayerStack(self.layers, self.tail, inserted, self.remat)

    def read(
        self,
        tokens: Sequence[Int[Array, "_ _"]],
        segments: Sequence[Int[Array, "_ _"]],
        *,
        keep: bool = False,
    ) -> tuple[Float[Array, "N D"], Text]:
        """Returns what enters the first layer, and who sees whom.

        Args:
          tokens: of the texts of one or several batches.
          segments: 0 for padding, equal numbers for tokens that may see each other.
          keep: keep keys and values for later text.
        """
        positions = [segment_positions(segments_BL) for segments_BL in segments]
        rows = map(self._causal_rows, segments, positions)
        rotary = map(self.rotary, positions)
        layout, choice = TokenLayout.of(tokens), self.config.attention
        text = Text(tuple(rows), tuple(rotary), layout=layout, choice=choice, keep=keep)
        return layout.join(list(map(self.embed, tokens, positions))), text

    def embed(
        self, tokens_BL: Int[Array, "B L"], positions_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Returns rows of tokens that stand at these positions of their segment."""
        x_BLD = self.embedding(tokens_BL)
        if self.positions is not None:
            table = value(self.positions, self.dtype)
            x_BLD = x_BLD + table[positions_BL + self.config.position_offset]
        return x_BLD

    def rotary(self, positions_BL: Int[Array, "B L"]) -> Rotary | None:
        """Returns cosine and sine of each feature's angle at these positions."""
        config = self.config
        if config.position != "rotary":
            return None
        rotated = int(config.head_width * config.rotary_fraction)
        frequency = config.rotary_theta ** (-jnp.arange(0, rotated, 2) / rotated)
        angle = positions_BL[..., None] * jnp.concatenate([frequency, frequency])
        return jnp.cos(angle), jnp.sin(angle)

    def slopes(self) -> Float[Array, "H"] | None:
        """Returns ALiBi's slope of each head, where this is the kind of position."""
        config = self.config
        is_alibi = config.position == "alibi"
        return alibi_slopes(config.num_heads, config.alibi_max) if is_alibi else None

    def _causal_rows(
        self, segments_BL: Int[Array, "B L"], positions_BL: Int[Array, "B L"]
    ) -> CausalRows:
        config = self.config
        rows = CausalRows(segments_BL, positions_BL, self.slopes())
        shape = (*segments_BL.shape, config.num_heads, config.head_width)
        return prepared(rows, jax.ShapeDtypeStruct(shape, self.dtype), config.attention)

    def logits(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Returns float32 logits of the next token."""
        return vocabulary_logits(self.norm(x_BLD), self._head_rows())

    def weighted_nll(
        self,
        x_BLD: Float[Array, "B L D"],
        tokens_BL: Int[Array, "B L"],
        weights_BL: Float[Array, "B L"],
        *,
        max_logits_mib: int,
    ) -> Float[Array, ""]:
        """Returns `cross_entropy.weighted_nll` of the logits, which never are in memory at once."""
        head = (vocabulary_logits, self.norm(constrain_batch(x_BLD)), self._head_rows())
        return chunked_nll(*head, tokens_BL, weights_BL, max_logits_mib=max_logits_mib)

    def _head_rows(self) -> tuple[Float[Array, "rows D"], ...]:
        rows = self.embedding.rows() if self.head is None else (self.head.weights()[0].T,)
        return tuple(part.astype(self.dtype) for part in rows)

    def __call__(
        self, tokens_BL: Int[Array, "B L"], segments_BL: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L V"]:
        """Returns float32 logits of the next token.

        Args:
          tokens_BL: one text per row.
          segments_BL: see `read`; a 0/1 attention mask is a valid value. None: no padding.

        Raises:
          ValueError: rows longer than the learned positions.
        """
        # Beyond the table a gather would silently repeat the last row.
        self.config.check_length(tokens_BL.shape[1])
        if segments_BL is None:
            segments_BL = jnp.ones_like(tokens_BL)
        x_ND, text = self.read([tokens_BL], [segments_BL])
        x_ND, _ = self.stack().run(x_ND, text)
        return self.logits(*text.layout.split(x_ND))
