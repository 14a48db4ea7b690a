"""Who sees whom: the texts of one or several batches, and of text that continues a prompt.

The tokens of all texts stand in one array (N, D), so that a weight is read once for all of them,
and has one gradient; only attention looks at each text by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from flamingo_jax.ops.attention import CausalRows, attention
from flamingo_jax.ops.attention_kernels import AttentionChoice
from flamingo_jax.ops.cached_attention import KeysValues, cached_attention
from flamingo_jax.parallel.mesh import concat_per_device, split_per_device
from flamingo_jax.parallel.remat import keep_elementwise

Rotary = tuple[Float[Array, "B L rot"], Float[Array, "B L rot"]]  # cosine and sine per position


STATIC = {"static": True}  # a field that is part of a pytree's structure


@dataclass(frozen=True)
class TokenLayout:
    """Shapes (B, L) of several texts whose tokens stand in one array (N, …)."""

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, xs: Sequence[Shaped[Array, "_ _ ..."]]) -> "TokenLayout":
        return cls(tuple((x.shape[0], x.shape[1]) for x in xs))

    def join(self, xs: Sequence[Shaped[Array, "_ _ ..."]]) -> Shaped[Array, "N ..."]:
        return concat_per_device([x.reshape(-1, *x.shape[2:]) for x in xs])

    def split(self, x_ND: Shaped[Array, "N ..."]) -> list[Shaped[Array, "_ _ ..."]]:
        parts = split_per_device(x_ND, [batch * length for batch, length in self.shapes])
        return [
            x.reshape(*shape, *x.shape[1:]) for x, shape in zip(parts, self.shapes, strict=True)
        ]


@runtime_checkable
class Sees(Protocol):
    """Answers what a block asks of the sequences that it runs over."""

    def attend(
        self,
        q_NHK: Float[Array, "N H K"],
        k_NGK: Float[Array, "N G K"],
        v_NGK: Float[Array, "N G K"],
        past: object = None,
    ) -> tuple[Float[Array, "N HK"], object]:
        """Returns what each token gathers, and the keys and values to be kept."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AllToAll:
    """Sequences whose every token sees all others of its row, as an image's patches do."""

    layout: TokenLayout = field(metadata=STATIC)
    choice: AttentionChoice = field(metadata=STATIC)

    def attend(self, q_NHK, k_NGK, v_NGK, past=None):
        each = zip(*map(self.layout.split, (q_NHK, k_NGK, v_NGK)), strict=True)
        attended = [merge_heads(attention(*qkv, choice=self.choice)) for qkv in each]
        return keep_elementwise(self.layout.join(attended)), None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Text:
    """Texts of one or several batches: each token sees itself and what stands before it in its
    segment.

    Attributes:
      rows: of each batch, its segments and positions.
      rotary: of each batch; None: no rotation.
      keep: the keys and values, for text that comes later; there is one batch.
    """

    rows: tuple[CausalRows, ...]
    rotary: tuple[Rotary | None, ...]
    layout: TokenLayout = field(metadata=STATIC)
    choice: AttentionChoice = field(metadata=STATIC)
    keep: bool = field(metadata=STATIC)

    def attend(self, q_NHK, k_NGK, v_NGK, past=None):
        each = zip(*map(self.layout.split, (q_NHK, k_NGK, v_NGK)), strict=True)
        attended, kept = [], []
        for (q, k, v), rows, rotary in zip(each, self.rows, self.rotary, strict=True):
            q, k = rotate(q, rotary), rotate(k, rotary)
            attended.append(merge_heads(attention(q, k, v, rows, choice=self.choice)))
            kept.append((k.swapaxes(1, 2), v.swapaxes(1, 2)))
        return keep_elementwise(self.layout.join(attended)), kept[0] if self.keep else None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContinuedText:
    """W continuations of each row of a prompt, at places `start`, `start` + 1, … of their cache.

    Attributes:
      mask_BLS: which keys a token sees, of the prompt and then of the continuation itself.
      bias_BHLS: ALiBi's, over the same keys; None: none.
      rotary: per continuation; None: no rotation.
      start: place of the first token.
      layout: (B · W, L).
    """

    mask_BLS: Bool[Array, "B L S"]
    bias_BHLS: Float[Array, "B H L S"] | None
    rotary: Rotary | None
    start: Int[Array, ""] | int
    layout: TokenLayout = field(metadata=STATIC)

    def attend(self, q_NHK, k_NGK, v_NGK, past: tuple[KeysValues, KeysValues | None]):
        """`past`: the prompt's keys and values, and the cache of the text itself, where it grows;
        None: the text is whole, and nothing is kept."""
        (q,), (k,), (v,) = map(self.layout.split, (q_NHK, k_NGK, v_NGK))
        q, k = rotate(q, self.rotary), rotate(k, self.rotary)
        own = k.swapaxes(1, 2), v.swapaxes(1, 2)
        prompt, cache = past
        if cache is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new, self.start, axis=2)
                for old, new in zip(cache, own, strict=True)
            )
            own = k, v
        attended = cached_attention(q, [prompt, own], self.mask_BLS, self.bias_BHLS)
        return self.layout.join([merge_heads(attended)]), None if cache is None else own


def merge_heads(y_BLHK: Float[Array, "B L H K"]) -> Float[Array, "B L HK"]:
    return y_BLHK.reshape(*y_BLHK.shape[:2], -1)


def rotate(x_BLHK: Float[Array, "B L H K"], rotary: Rotary | None) -> Float[Array, "B L H K"]:
    """Applies the rotary position embedding (arXiv 2104.09864) to the first features of each head.

    Feature i is paired with feature i + rot/2, as GPT-NeoX and LLaMA do. Rotation is in float32.
    """
    if rotary is None:
        return x_BLHK
    cos, sin = (r[:, :, None, :] for r in rotary)
    rotated_width = cos.shape[-1]
    x, rest = x_BLHK[..., :rotated_width].astype(cos.dtype), x_BLHK[..., rotated_width:]
    left, right = jnp.split(x, 2, axis=-1)
    x = x * cos + jnp.concatenate([-right, left], axis=-1) * sin
    return jnp.concatenate([x.astype(x_BLHK.dtype), rest], axis=-1)


def segment_positions(segments_BL: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns the index of each token inside its run of equal segment ids, from 0."""
    index_L = jnp.arange(segments_BL.shape[1])
    starts_BL = jnp.diff(segments_BL, axis=1, prepend=segments_BL[:, :1]) != 0
    return index_L - jax.lax.cummax(jnp.where(starts_BL, index_L, 0), axis=1)


def visible_image(
    tokens_BL: Int[Array, "B L"], image_token: int, segments_BL: Int[Array, "B L"]
) -> Int[Array, "B L"]:
    """Returns the index of the one image each text position sees, −1 for none.

    A position sees the image whose `<image>` stands last at or before it in its own segment
    (Flamingo's per-image masking). Images are numbered along the row, across segments, so that
    packed documents keep their images apart. Padding (segment 0) sees none.
    """
    is_image_BL = (tokens_BL == image_token) & (segments_BL != 0)
    index_L = jnp.arange(tokens_BL.shape[1])
    starts_BL = jnp.diff(segments_BL, axis=1, prepend=segments_BL[:, :1] - 1) != 0
    start_BL = jax.lax.cummax(jnp.where(starts_BL, index_L, 0), axis=1)
    last_image_BL = jax.lax.cummax(jnp.where(is_image_BL, index_L, -1), axis=1)
    sees_BL = (last_image_BL >= start_BL) & (segments_BL != 0)
    return jnp.where(sees_BL, jnp.cumsum(is_image_BL, axis=1) - 1, -1)
