"""Perceiver Resampler: any number of patch tokens and frames → a fixed number of latents."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.models.block import FeedForward, layer_norm, linear, stack, standardize
from flamingo_jax.ops.attention import AttentionChoice, attend
from flamingo_jax.ops.fused import SAVE_ELEMENTWISE
from flamingo_jax.parallel.fsdp import RematPolicy, fsdp_remat_layer, gather, policy_for_new_modules
from flamingo_jax.parallel.mesh import constrain_batch


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """Section 2.1 of the Flamingo paper (arXiv 2204.14198); OpenFlamingo's sizes."""

    kind: Literal["perceiver"] = "perceiver"
    num_layers: int = 6
    num_latents: int = 64
    num_heads: int = 8
    head_dim: int = 64
    feed_forward_multiple: int = 4
    max_frames: int = 0  # > 0: a learned embedding per frame of a video
    max_media: int = 0  # > 0: a learned embedding per image position in the row
    attention: AttentionChoice = "auto"  # as in `BlockConfig`

    def check_media(self, images: int, frames: int = 1) -> None:
        """ValueError: rows of so many images, or videos of so many frames, lack embeddings."""
        for name, count in (("frames", frames), ("media", images)):
            most = getattr(self, f"max_{name}")
            if most and count > most:
                raise ValueError(
                    f"{count} {name} given, the resampler has embeddings for {most}: "
                    f"give fewer, or raise connector.max_{name}"
                )


class ResamplerLayer(nnx.Module):
    """Latents attend to [patch tokens, latents], then a feed-forward; both residual."""

    def __init__(self, config: PerceiverConfig, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        self.media_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.latent_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.query = linear(width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.key = linear(width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.value = linear(width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.out = linear(inner, width, bias=False, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(width, config.feed_forward_multiple, dtype=dtype, rngs=rngs)
        self.head_dim = config.head_dim
        self.kernel = config.attention

    def __call__(
        self, latents_BRD: Float[Array, "B R D"], media_BND: Float[Array, "B N D"]
    ) -> Float[Array, "B R D"]:
        """`media`: patch tokens, standardized already; see `standardize`."""
        attended_BRHK = attend(*self.heads(latents_BRD, media_BND), wanted=self.kernel)
        attended_BRE = checkpoint_name(
            rearrange(attended_BRHK, "b r h k -> b r (h k)"), SAVE_ELEMENTWISE
        )
        latents_BRD = latents_BRD + self.out(attended_BRE)
        return latents_BRD + self.feed_forward(latents_BRD)

    def heads(
        self, latents_BRD: Float[Array, "B R D"], media_BND: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B R H K"], Float[Array, "B S H K"], Float[Array, "B S H K"]]:
        """Queries of the latents; keys and values of the media, then of the latents."""
        y_BRD = self.latent_norm(latents_BRD)

        def of_both(linear: nnx.Linear) -> Array:
            return jnp.concatenate([self._of_media(linear, media_BND), linear(y_BRD)], axis=1)

        q, k, v = self.query(y_BRD), of_both(self.key), of_both(self.value)
        return self._by_head(q), self._by_head(k), self._by_head(v)

    def _by_head(self, y_BSD: Float[Array, "B S D"]) -> Float[Array, "B S H K"]:
        return rearrange(y_BSD, "b s (h k) -> b s h k", k=self.head_dim)

    def _of_media(self, linear: nnx.Linear, media_BND: Array) -> Array:
        """`linear(media_norm(media))`, with the norm's scale and bias moved into the weight.

        So the matmul's input is the same in all layers, and a constant where the vision encoder is
        frozen: it is kept once, and has no gradient that the scale and bias alone would need. The
        output is computed again, not kept: all layers' keys and values of all patches are large.
        """
        norm = self.media_norm
        assert norm.scale is not None
        assert norm.bias is not None
        scale_D, bias_D = (p[...].astype(jnp.float32) for p in (norm.scale, norm.bias))
        kernel_DO = linear.kernel[...].astype(jnp.float32)
        scaled_DO, shift_O = scale_D[:, None] * kernel_DO, bias_D @ kernel_DO
        dtype = media_BND.dtype
        rows_ND = media_BND.reshape(-1, media_BND.shape[-1])
        y_NO = rows_ND @ scaled_DO.astype(dtype) + shift_O.astype(dtype)
        return y_NO.reshape(*media_BND.shape[:2], -1)


class PerceiverResampler(nnx.Module):
    """Learned latents that read the patch tokens of one image, or of all frames of one video."""

    def __init__(self, config: PerceiverConfig, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def embedding(count: int) -> nnx.Param | None:
            if not count:
                return None
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))

        self.latents = nnx.Param(jax.random.normal(rngs.params(), (config.num_latents, width)))
        self.frame_embedding = embedding(config.max_frames)
        self.media_embedding = embedding(config.max_media)
        self.layers = stack(
            lambda r: ResamplerLayer(config, width, dtype=dtype, rngs=r), config.num_layers, rngs
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.config = config
        self.dtype = dtype

    def flat_media(self, x_BTFND: Float[Array, "B T F N D"]) -> Float[Array, "BT FN D"]:
        """What the latents attend to, one row an image or video, frames behind one another."""
        images, frames = x_BTFND.shape[1:3]
        self.config.check_media(images, frames)
        x_BTFND = x_BTFND.astype(self.dtype)
        for table, count, axis in (
            (self.frame_embedding, frames, 2),
            (self.media_embedding, images, 1),
        ):
            if table is None:
                continue
            shape = [1] * 4 + [-1]
            shape[axis] = count
            x_BTFND = x_BTFND + table[:count].astype(self.dtype).reshape(shape)
        return rearrange(x_BTFND, "b t f n d -> (b t) (f n) d")

    def __call__(
        self, x_BTFND: Float[Array, "B T F N D"], *, remat: RematPolicy = "none"
    ) -> Float[Array, "B T R D"]:
        """Latents of each image or video. ValueError: more frames or images than embeddings."""
        latents_BRD = self.of_media(self.flat_media(x_BTFND), remat=remat)
        return rearrange(latents_BRD, "(b t) r d -> b t r d", b=len(x_BTFND))

    def of_media(
        self, media_BND: Float[Array, "B N D"], *, remat: RematPolicy = "none"
    ) -> Float[Array, "B R D"]:
        """Latents of each row of `flat_media`."""
        media_BND = standardize(media_BND, dtype=self.dtype)
        latents_RD = gather(self.latents, self.dtype)[...].astype(self.dtype)
        latents_BRD = jnp.broadcast_to(latents_RD, (len(media_BND), *latents_RD.shape))

        layer = fsdp_remat_layer(
            lambda module, x: module(x, media_BND), self.dtype, policy_for_new_modules(remat)
        )
        latents_BRD, _ = jax.lax.scan(
            lambda x, module: (layer(module, constrain_batch(x)), None), latents_BRD, self.layers
        )
        return self.norm(latents_BRD)
