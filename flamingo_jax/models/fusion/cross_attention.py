"""Gated cross-attention (GATED XATTN-DENSE), and which text sees which image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.models.block import FeedForward, layer_norm, linear
from flamingo_jax.models.text import Texts
from flamingo_jax.ops.fused import MASKED, SAVE_ELEMENTWISE, softmax_attention
from flamingo_jax.ops.grouped_attention import (
    ImageBlocks,
    group_queries_by_image,
    image_blocks,
    num_slots,
    ungroup_queries,
)
from flamingo_jax.parallel.mesh import concat_per_device, split_per_device

# Head by head, as attention reads them: decoding would turn them anew for every token.
MediaKeysValues = tuple[Float[Array, "B H T R K"], Float[Array, "B H T R K"]]


@dataclass(frozen=True, kw_only=True)
class GatedCrossAttentionConfig:
    """Section 2.2 of the Flamingo paper (arXiv 2204.14198); OpenFlamingo's sizes."""

    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    interval: int = 1  # one block before every `interval`-th decoder layer
    num_heads: int = 8
    head_dim: int = 64
    feed_forward_multiple: int = 4
    # Gates start at tanh(gate_init): at 0 a pretrained language model starts out unchanged. A model
    # that starts from nothing sees its images sooner with open gates.
    gate_init: float = 0.0
    # The block's feed-forward changes text that sees no image, too: how OpenFlamingo's released
    # weights were trained. False: such text passes unchanged, so a text-only row is the plain LM.
    feed_forward_everywhere: bool = False
    # Text after an `<image>` that has no picture attends to every latent of its row alike: what the
    # original does, only there to reproduce it. False: such text is an error.
    uniform_beyond_images: bool = False


def visible_image(
    tokens_BL: Int[Array, "B L"], image_token: int, segments_BL: Int[Array, "B L"]
) -> Int[Array, "B L"]:
    """Index of the one image each text position sees, −1 for none.

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


class GatedCrossAttention(nnx.Module):
    """Text attends to its image's latents, then a feed-forward; each behind a tanh gate at zero."""

    def __init__(
        self,
        config: GatedCrossAttentionConfig,
        width: int,
        media_width: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inner = config.num_heads * config.head_dim
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.query = linear(width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.key = linear(media_width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.value = linear(media_width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.out = linear(inner, width, bias=False, dtype=dtype, rngs=rngs)
        self.attention_gate = nnx.Param(jnp.full((), config.gate_init, jnp.float32))
        self.feed_forward = FeedForward(width, config.feed_forward_multiple, dtype=dtype, rngs=rngs)
        self.feed_forward_gate = nnx.Param(jnp.full((), config.gate_init, jnp.float32))
        self.config = config

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        media_BTRD: Float[Array, "B T R M"],
        visible_BL: Int[Array, "B L"],
    ) -> Float[Array, "B L D"]:
        """`visible`: index of the image each text position sees; −1: none; ≥ T: see the config."""
        return self.attend_to(x_BLD, self.keys_values(media_BTRD), visible_BL)

    def keys_values(self, media_BTRD: Float[Array, "B T R M"]) -> MediaKeysValues:
        """What the text attends to; it depends on the images alone, so decoding keeps it."""
        return self.keys_values_of([media_BTRD])[0]

    def keys_values_of(self, media: Sequence[Float[Array, "_ _ R M"]]) -> list[MediaKeysValues]:
        """Of the images of several texts."""
        rows = [rearrange(x_BTRD, "b t r d -> (b t r) d") for x_BTRD in media]
        joined = concat_per_device(rows)
        keys, values = (
            split_per_device(linear(joined), list(map(len, rows)))
            for linear in (self.key, self.value)
        )

        def by_head(y_ND: Array, media_BTRD: Array) -> Float[Array, "B H T R K"]:
            shape = dict(zip("btr", media_BTRD.shape[:3], strict=True))
            heads = {"h": self.config.num_heads, "k": self.config.head_dim}
            return rearrange(y_ND, "(b t r) (h k) -> b h t r k", **shape, **heads)

        return [(by_head(k, x), by_head(v, x)) for k, v, x in zip(keys, values, media, strict=True)]

    def attend_to(
        self, x_BLD: Float[Array, "B L D"], media: MediaKeysValues, visible_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        texts = Texts.of([x_BLD])
        return texts.split(self.together(texts.join([x_BLD]), texts, [media], [visible_BL]))[0]

    def together(
        self,
        x_ND: Float[Array, "N D"],
        texts: Texts,
        media: Sequence[MediaKeysValues],
        visible: Sequence[Int[Array, "_ _"]],
    ) -> Float[Array, "N D"]:
        """The block for several texts, the tokens of all of them in one array."""
        sees = [self._sees(kv, seen_BL) for kv, seen_BL in zip(media, visible, strict=True)]
        sees_Nx = texts.join(sees)[:, None]
        q_ND = self.query(self.norm(x_ND))
        each = zip(texts.split(q_ND), media, visible, sees, strict=True)
        attended_ND = texts.join([self._attend(q, kv, v, s) for q, kv, v, s in each])
        attended_ND = checkpoint_name(attended_ND, SAVE_ELEMENTWISE)
        gated_ND = self._gate(self.attention_gate) * self.out(attended_ND)
        y_ND = x_ND + jnp.where(sees_Nx, gated_ND, 0)
        dense_ND = self.feed_forward(y_ND, self._gate(self.feed_forward_gate))
        if not self.config.feed_forward_everywhere:
            dense_ND = jnp.where(sees_Nx, dense_ND, 0)
        return y_ND + dense_ND

    def _sees(self, media: MediaKeysValues, visible_BL: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """Whether a text position sees an image at all."""
        num_images = media[0].shape[2]
        if self.config.uniform_beyond_images and num_images:
            return visible_BL >= 0
        return (visible_BL >= 0) & (visible_BL < num_images)

    def _attend(
        self,
        q_BLD: Float[Array, "B L D"],
        media: MediaKeysValues,
        visible_BL: Int[Array, "B L"],
        sees_BL: Bool[Array, "B L"],
    ) -> Float[Array, "B L D"]:
        """Of text that sees nothing, anything finite: it is masked out afterwards."""
        num_images = media[0].shape[2]
        if not num_images:
            return jnp.zeros_like(q_BLD)
        slots = num_slots(visible_BL.shape[1], num_images)
        if slots is None or self.config.uniform_beyond_images:
            return self._attend_to_all(q_BLD, media, visible_BL, sees_BL[..., None])
        blocks = image_blocks(visible_BL, num_images, slots)
        return ungroup_queries(
            self._attend_by_block(group_queries_by_image(q_BLD, blocks), media, blocks), blocks
        )

    def _attend_by_block(
        self, q_BSD: Float[Array, "B S D"], media: MediaKeysValues, blocks: ImageBlocks
    ) -> Float[Array, "B S D"]:
        """Each block of text attends to the latents of its one image."""
        image_BxNxx = blocks.image_BN[:, None, :, None, None]
        k_BHNRK, v_BHNRK = (jnp.take_along_axis(y, image_BxNxx, 2, mode="clip") for y in media)
        shape = {"n": blocks.image_BN.shape[1], "k": self.config.head_dim}
        q_BHNCK = rearrange(q_BSD, "b (n c) (h k) -> b h n c k", **shape)
        attended_BHNCK = softmax_attention(q_BHNCK, k_BHNRK, v_BHNRK)
        return rearrange(attended_BHNCK, "b h n c k -> b (n c) (h k)")

    def _attend_to_all(
        self,
        q_BLD: Float[Array, "B L D"],
        media: MediaKeysValues,
        visible_BL: Int[Array, "B L"],
        sees_BLx: Bool[Array, "B L 1"],
    ) -> Float[Array, "B L D"]:
        """All latents are attended to, those of images that are not seen with weight 0."""
        num_images, num_latents, head_dim = media[0].shape[2:]
        q_BHLK = rearrange(q_BLD, "b l (h k) -> b h l k", k=head_dim)
        k_BHSK, v_BHSK = (rearrange(y, "b h t r k -> b h (t r) k") for y in media)
        image_S = jnp.repeat(jnp.arange(num_images), num_latents)
        # Attending to all where nothing is seen keeps the softmax finite.
        beyond_BLx = (visible_BL >= num_images)[..., None]
        mask_BLS = (visible_BL[..., None] == image_S) | ~sees_BLx | beyond_BLx
        # A query of zeros scores all keys alike.
        q_BHLK = jnp.where(beyond_BLx[:, None], 0, q_BHLK)
        bias_BxLS = jnp.where(mask_BLS[:, None], 0.0, MASKED)
        attended_BHLK = softmax_attention(q_BHLK, k_BHSK, v_BHSK, (bias_BxLS,))
        return rearrange(attended_BHLK, "b h l k -> b l (h k)")

    def _gate(self, gate: nnx.Param) -> Float[Array, ""]:
        return jnp.tanh(gate[...]).astype(self.out.dtype)
