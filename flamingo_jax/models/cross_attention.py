"""Gated cross-attention (GATED XATTN-DENSE), and which text sees which image."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.models.image_blocks import (
    ImageBlocks,
    from_slots,
    image_blocks,
    num_slots,
    to_slots,
)
from flamingo_jax.models.layers import FeedForward, layer_norm, linear

# Head by head, as attention reads them: decoding would turn them anew for every token.
MediaKeysValues = tuple[Float[Array, "B H T R K"], Float[Array, "B H T R K"]]


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig:
    """Section 2.2 of the Flamingo paper (arXiv 2204.14198); OpenFlamingo's sizes."""

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
        config: CrossAttentionConfig,
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
        num_images, num_heads = media_BTRD.shape[1], self.config.num_heads
        media_BSD = rearrange(media_BTRD, "b t r d -> b (t r) d")

        def by_head(y_BSD: Array) -> Array:
            return rearrange(y_BSD, "b (t r) (h k) -> b h t r k", t=num_images, h=num_heads)

        if not num_images:
            empty = jnp.zeros(
                (len(media_BSD), num_heads, 0, media_BTRD.shape[2], self.config.head_dim),
                media_BSD.dtype,
            )
            return empty, empty
        return by_head(self.key(media_BSD)), by_head(self.value(media_BSD))

    def attend_to(
        self, x_BLD: Float[Array, "B L D"], media: MediaKeysValues, visible_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        num_images = media[0].shape[2]
        limit = jnp.inf if self.config.uniform_beyond_images else num_images
        sees_BLx = ((visible_BL >= 0) & (visible_BL < limit))[..., None]
        y_BLD = x_BLD
        if num_images:
            attended_BLD = self._attend(x_BLD, media, visible_BL, sees_BLx)
            y_BLD = x_BLD + jnp.where(sees_BLx, self._gate(self.attention_gate) * attended_BLD, 0)
        dense_BLD = self._gate(self.feed_forward_gate) * self.feed_forward(y_BLD)
        if not self.config.feed_forward_everywhere:
            dense_BLD = jnp.where(sees_BLx, dense_BLD, 0)
        return y_BLD + dense_BLD

    def _attend(
        self,
        x_BLD: Float[Array, "B L D"],
        media: MediaKeysValues,
        visible_BL: Int[Array, "B L"],
        sees_BLx: Bool[Array, "B L 1"],
    ) -> Float[Array, "B L D"]:
        """Of text that sees nothing, anything finite: it is masked out afterwards."""
        q_BLD = self.query(self.norm(x_BLD))
        slots = num_slots(visible_BL.shape[1], media[0].shape[2])
        if slots is None or self.config.uniform_beyond_images:
            return self.out(self._attend_to_all(q_BLD, media, visible_BL, sees_BLx))
        blocks = image_blocks(visible_BL, media[0].shape[2], slots)
        attended_BSD = self._attend_by_block(to_slots(q_BLD, blocks), media, blocks)
        return self.out(from_slots(attended_BSD, blocks))

    def _attend_by_block(
        self, q_BSD: Float[Array, "B S D"], media: MediaKeysValues, blocks: ImageBlocks
    ) -> Float[Array, "B S D"]:
        """Each block of text attends to the latents of its one image."""
        image_BxNxx = blocks.image_BN[:, None, :, None, None]
        k_BHNRK, v_BHNRK = (jnp.take_along_axis(y, image_BxNxx, 2, mode="clip") for y in media)
        shape = {"n": blocks.image_BN.shape[1], "k": self.config.head_dim}
        q_BNCHK = rearrange(q_BSD, "b (n c) (h k) -> b n c h k", **shape)
        score_BHNCR = jnp.einsum(
            "bnchk,bhnrk->bhncr", q_BNCHK, k_BHNRK, preferred_element_type=jnp.float32
        )
        weights_BHNCR = jax.nn.softmax(score_BHNCR * self.config.head_dim**-0.5)
        attended_BNCHK = jnp.einsum(
            "bhncr,bhnrk->bnchk", weights_BHNCR.astype(v_BHNRK.dtype), v_BHNRK
        )
        return rearrange(attended_BNCHK, "b n c h k -> b (n c) (h k)")

    def _attend_to_all(
        self,
        q_BLD: Float[Array, "B L D"],
        media: MediaKeysValues,
        visible_BL: Int[Array, "B L"],
        sees_BLx: Bool[Array, "B L 1"],
    ) -> Float[Array, "B L D"]:
        """All latents are attended to, those of images that are not seen with weight 0."""
        num_images, num_latents, head_dim = media[0].shape[2:]
        q_BLHK = rearrange(q_BLD, "b l (h k) -> b l h k", k=head_dim)
        k_BHSK, v_BHSK = (rearrange(y, "b h t r k -> b h (t r) k") for y in media)
        image_S = jnp.repeat(jnp.arange(num_images), num_latents)
        # Attending to all where nothing is seen keeps the softmax finite.
        beyond_BLx = (visible_BL >= num_images)[..., None]
        mask_BLS = (visible_BL[..., None] == image_S) | ~sees_BLx | beyond_BLx
        # A query of zeros scores all keys alike.
        q_BLHK = jnp.where(beyond_BLx[..., None], 0, q_BLHK)
        score_BHLS = jnp.einsum(
            "blhk,bhsk->bhls", q_BLHK, k_BHSK, preferred_element_type=jnp.float32
        )
        score_BHLS = jnp.where(
            mask_BLS[:, None], score_BHLS * head_dim**-0.5, jnp.finfo(jnp.float32).min
        )
        weights_BHLS = jax.nn.softmax(score_BHLS).astype(v_BHSK.dtype)
        attended_BLHK = jnp.einsum("bhls,bhsk->blhk", weights_BHLS, v_BHSK)
        return rearrange(attended_BLHK, "b l h k -> b l (h k)")

    def _gate(self, gate: nnx.Param) -> Float[Array, ""]:
        return jnp.tanh(gate[...]).astype(self.out.dtype)
