"""The one decoder-only language model: MPT, GPT-NeoX, OPT and LLaMA are settings of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.models.block import (
    AttentionContext,
    Block,
    BlockConfig,
    ModuleT,
    block_norm,
    linear,
    stack,
)
from flamingo_jax.models.text import Texts
from flamingo_jax.ops.attention_xla import CausalRows, causal_mask
from flamingo_jax.ops.cross_entropy import chunked_nll
from flamingo_jax.ops.vocabulary_logits import vocabulary_logits
from flamingo_jax.parallel.fsdp import RematPolicy, fsdp_remat_layer, gather, policy_for_new_modules
from flamingo_jax.parallel.mesh import constrain_batch


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(BlockConfig):
    """A decoder-only language model.

    Token ids: `vocab_size` pretrained rows, then `num_new_tokens` rows that Flamingo trains
    (`<|endofchunk|>`, `<image>`), then `num_pad_tokens` (0 or 1) that nothing trains.
    """

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


def segment_positions(segments_BL: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Index of each token inside its run of equal segment ids: 0 at the run's first token."""
    index_L = jnp.arange(segments_BL.shape[1])
    starts_BL = jnp.diff(segments_BL, axis=1, prepend=segments_BL[:, :1]) != 0
    return index_L - jax.lax.cummax(jnp.where(starts_BL, index_L, 0), axis=1)


class Embedding(nnx.Module):
    """Token rows in three parameters: pretrained, new (trained), pad (never trained).

    Kept apart so that the gradient of the large table is never formed, and its rows stay bitwise
    as they were. Lookup and the tied head see one table.
    """

    def __init__(self, config: DecoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def rows(count: int) -> nnx.Param | None:
            shape = (count, config.width)
            scale = config.width**-0.5  # so that a tied head starts with logits of order one
            return nnx.Param(scale * jax.random.normal(rngs.params(), shape)) if count else None

        self.table = rows(config.vocab_size)
        self.new_rows = rows(config.num_new_tokens)
        self.pad_rows = rows(config.num_pad_tokens)
        self.dtype = dtype

    def _parts(self) -> list[Float[Array, "rows D"]]:
        return [p[...] for p in (self.table, self.new_rows, self.pad_rows) if p is not None]

    def __call__(self, tokens_BL: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        def look_up(part: Array, first: int) -> Array:
            return part[jnp.clip(tokens_BL - first, 0, len(part) - 1)].astype(self.dtype)

        table, *others = self._parts()
        x_BLD, first = look_up(table, 0), len(table)
        for part in others:
            x_BLD = jnp.where(tokens_BL[..., None] < first, x_BLD, look_up(part, first))
            first += len(part)
        return x_BLD

    def rows(self) -> tuple[Float[Array, "rows D"], ...]:
        """The table's parts, in the type that they are multiplied in."""
        return tuple(part.astype(self.dtype) for part in self._parts())

    def logits(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        return vocabulary_logits(x_BLD, self.rows())


class Decoder(nnx.Module):
    """Decoder-only language model whose layers are stacked and scanned in groups of `interval`.

    `layers[j]` holds layers j, j + interval, j + 2·interval, … ; `tail` those left over at the end.
    One stack per position of the group: indexing one large stack inside the scan would make
    per-layer remat save a second copy of the weights.
    """

    def __init__(
        self, config: DecoderConfig, *, interval: int = 1, dtype: DTypeLike, rngs: nnx.Rngs
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
        self.layers = nnx.List(
            [stack(make, num_groups, rngs) for _ in range(interval)] if num_groups else []
        )
        self.tail = stack(make, left_over, rngs) if left_over else None
        self.norm = block_norm(config, config.width, dtype=dtype, rngs=rngs)
        self.head = (
            None
            if config.tie_head
            else linear(config.width, config.total_vocab_size, bias=False, dtype=dtype, rngs=rngs)
        )
        self.config = config
        self.dtype = dtype

    def context(self, segments_BL: Int[Array, "B L"]) -> AttentionContext:
        """Mask, ALiBi bias and rotary angles, shared by all layers."""
        config, positions_BL = self.config, segment_positions(segments_BL)
        context = self.context_at(positions_BL, positions_BL, causal_mask(segments_BL))
        slopes_H = None
        if config.position == "alibi":
            slopes_H = alibi_slopes(config.num_heads, config.alibi_max)
        return replace(context, causal=CausalRows(segments_BL, positions_BL, slopes_H))

    def context_at(
        self,
        positions_BL: Int[Array, "B L"],
        key_positions_BS: Int[Array, "B S"],
        mask_BxLS: Bool[Array, "B 1 L S"],
    ) -> AttentionContext:
        """The context of queries at these positions, over keys at those."""
        config = self.config
        bias_BHLS = rotary = None
        if config.position == "alibi":
            distance_BLS = key_positions_BS[:, None, :] - positions_BL[:, :, None]
            slopes_H = alibi_slopes(config.num_heads, config.alibi_max)
            bias_BHLS = slopes_H[None, :, None, None] * distance_BLS[:, None]
        elif config.position == "rotary":
            rotated = int(config.head_width * config.rotary_fraction)
            frequency = config.rotary_theta ** (-jnp.arange(0, rotated, 2) / rotated)
            angle = positions_BL[..., None] * jnp.concatenate([frequency, frequency])
            rotary = jnp.cos(angle), jnp.sin(angle)
        return AttentionContext(mask_BxLS, bias_BHLS, rotary)

    def embed(
        self, tokens_BL: Int[Array, "B L"], segments_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """One text per row. ValueError: it is longer than the learned positions."""
        # Beyond the table a gather would silently repeat the last row.
        self.config.check_length(tokens_BL.shape[1])
        return self.embed_at(tokens_BL, segment_positions(segments_BL))

    def embed_at(
        self, tokens_BL: Int[Array, "B L"], positions_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Rows of tokens that stand at these positions of their text."""
        x_BLD = gather(self.embedding, self.dtype)(tokens_BL)
        if self.positions is not None:
            index_BL = positions_BL + self.config.position_offset
            table = gather(self.positions, self.dtype)[...]
            x_BLD = x_BLD + table.astype(self.dtype)[index_BL]
        return x_BLD

    def run_layers(
        self,
        xs: Sequence[Float[Array, "_ _ D"]],
        contexts: Sequence[AttentionContext],
        *,
        between: tuple[ModuleT, Callable[[ModuleT, Array, Texts], Array]] | None = None,
        remat: RematPolicy = "none",
    ) -> list[Float[Array, "_ _ D"]]:
        """All layers, for several texts of any shapes (B, L) at once: a weight is gathered and read
        once for all of them, and has one gradient.

        `between`: a stack with one module per group, and how to apply it to the texts' tokens; it
        stands before the last layer of its group (where Flamingo's cross-attention stands).
        """
        texts = Texts.of(xs)

        def run_block(block: Block, x_ND: Array) -> Array:
            return block.together(x_ND, texts, contexts)

        def run_between(module: ModuleT, x_ND: Array) -> Array:
            assert between is not None
            return between[1](module, x_ND, texts)

        layer = fsdp_remat_layer(run_block, self.dtype, remat)
        extra_layer = fsdp_remat_layer(run_between, self.dtype, policy_for_new_modules(remat))

        def group(x_ND, stacks):
            (*before, last), extra = stacks
            for block in before:
                x_ND = layer(block, constrain_batch(x_ND))
            if extra is not None:
                x_ND = extra_layer(extra, constrain_batch(x_ND))
            return layer(last, constrain_batch(x_ND)), None

        x_ND = texts.join(xs)
        if self.layers:
            extra = between[0] if between is not None else None
            x_ND, _ = jax.lax.scan(group, x_ND, (list(self.layers), extra))
        if self.tail is not None:
            x_ND, _ = jax.lax.scan(
                lambda x_ND, block: (layer(block, constrain_batch(x_ND)), None), x_ND, self.tail
            )
        return texts.split(x_ND)

    def logits(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        x_BLD = self.norm(constrain_batch(x_BLD))
        if self.head is None:
            return gather(self.embedding, self.dtype).logits(x_BLD)
        return gather(self.head, self.dtype)(x_BLD).astype(jnp.float32)

    def weighted_nll(
        self,
        x_BLD: Float[Array, "B L D"],
        tokens_BL: Int[Array, "B L"],
        weights_BL: Float[Array, "B L"],
        *,
        max_logits_mib: int,
    ) -> Float[Array, ""]:
        """`loss.weighted_nll` of the logits, which never are in memory all at once."""
        x_BLD = self.norm(constrain_batch(x_BLD))
        if self.head is None:
            rows = gather(self.embedding, self.dtype).rows()
        else:
            rows = (gather(self.head, self.dtype).kernel[...].astype(self.dtype).T,)
        return chunked_nll(
            vocabulary_logits, x_BLD, rows, tokens_BL, weights_BL, max_logits_mib=max_logits_mib
        )

    def __call__(
        self, tokens_BL: Int[Array, "B L"], segments_BL: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L V"]:
        """Float32 logits of the next token. `segments`: 0 for padding, equal numbers for tokens
        that may see each other (a 0/1 attention mask is a valid value); None: no padding."""
        if segments_BL is None:
            segments_BL = jnp.ones_like(tokens_BL)
        x_BLD = self.embed(tokens_BL, segments_BL)
        return self.logits(*self.run_layers([x_BLD], [self.context(segments_BL)]))
