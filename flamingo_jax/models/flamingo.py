"""Flamingo: a vision encoder and a language model, joined by resampler and cross-attention."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from flamingo_jax.models.cross_attention import (
    CrossAttentionConfig,
    GatedCrossAttention,
    visible_image,
)
from flamingo_jax.models.decoder import Decoder, DecoderConfig
from flamingo_jax.models.layers import pin_batch, stack
from flamingo_jax.models.memory import RematPolicy
from flamingo_jax.models.resampler import PerceiverResampler, ResamplerConfig
from flamingo_jax.models.vision import VisionConfig, VisionTransformer

Images = UInt8[Array, "B T F H W 3"] | Float[Array, "B T F H W 3"]
Patches = Float[Array, "B T F N D"]


@dataclass(frozen=True, kw_only=True)
class FlamingoConfig:
    """A whole model. Its token ids: see `DecoderConfig`."""

    vision: VisionConfig
    decoder: DecoderConfig
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matmul inputs
    remat: RematPolicy = "none"
    # The loss looks at as many positions of each row at a time as have this much of float32 logits
    # on a device.
    max_logits_mib: int = 256

    def __post_init__(self) -> None:
        if self.decoder.num_new_tokens != 2:
            raise ValueError(
                f"decoder.num_new_tokens is {self.decoder.num_new_tokens}, Flamingo needs 2: "
                "<|endofchunk|> and <image>"
            )
        if self.max_logits_mib < 1:
            raise ValueError(f"max_logits_mib is {self.max_logits_mib}, it must be at least 1")
        if not 1 <= self.cross_attention.interval <= self.decoder.num_layers:
            raise ValueError(
                f"cross_attention.interval is {self.cross_attention.interval}, it must be between "
                f"1 and the decoder's {self.decoder.num_layers} layers"
            )

    @property
    def end_of_chunk_token(self) -> int:
        return self.decoder.vocab_size

    @property
    def image_token(self) -> int:
        return self.decoder.vocab_size + 1


class Flamingo(nnx.Module):
    """The model of arXiv 2204.14198, as OpenFlamingo (arXiv 2308.01390) builds it."""

    def __init__(self, config: FlamingoConfig, rngs: nnx.Rngs):
        self.dtype = dtype = jnp.dtype(config.dtype)
        cross, decoder = config.cross_attention, config.decoder
        self.vision = VisionTransformer(config.vision, dtype=dtype, rngs=rngs)
        self.resampler = PerceiverResampler(
            config.resampler, config.vision.width, dtype=dtype, rngs=rngs
        )
        self.decoder = Decoder(decoder, interval=cross.interval, dtype=dtype, rngs=rngs)
        self.cross_attention = stack(
            lambda r: GatedCrossAttention(
                cross, decoder.width, config.vision.width, dtype=dtype, rngs=r
            ),
            decoder.num_layers // cross.interval,
            rngs,
        )
        self.config = config

    def patches(self, images: Images) -> Patches:
        """What the vision encoder sees in each frame: all that a frozen one is needed for."""
        batch, num_images, frames = images.shape[:3]
        if not num_images:
            vision = self.config.vision
            return jnp.zeros((batch, 0, frames, vision.num_patches, vision.width), self.dtype)
        flat = rearrange(images, "b t f h w c -> (b t f) h w c")
        patches_BND = self.vision(flat, remat=self.config.remat)
        shape = {"b": batch, "t": num_images}
        return pin_batch(rearrange(patches_BND, "(b t f) n d -> b t f n d", **shape))

    def latents(self, patches_BTFND: Patches) -> Float[Array, "B T R D"]:
        """What the text sees of each image or video."""
        if not patches_BTFND.shape[1]:
            num_latents, width = self.config.resampler.num_latents, self.config.vision.width
            return jnp.zeros((len(patches_BTFND), 0, num_latents, width), self.dtype)
        return pin_batch(self.resampler(patches_BTFND, remat=self.config.remat))

    def encode_images(self, images: Images) -> Float[Array, "B T R D"]:
        """Latents of each image: uint8 RGB or normalised floats, F frames each (1 for a still)."""
        return self.latents(self.patches(images))

    def together(
        self,
        batches: Sequence[tuple[Float[Array, "B T R M"], Int[Array, "B L"], Int[Array, "B L"]]],
    ) -> list[Float[Array, "B L D"]]:
        """Decoder outputs of several batches of (latents, tokens, segments), of any shapes.

        What one call per batch gives, but the language model's weights are gathered once for all,
        and have one gradient, not one per batch to be added up.
        """
        attends = []
        for media_BTRD, tokens_BL, segments_BL in batches:
            visible_BL = visible_image(tokens_BL, self.config.image_token, segments_BL)
            attends.append(lambda block, x, m=media_BTRD, v=visible_BL: block(x, m, v))
        return self.decoder.run_layers(
            [self.decoder.embed(tokens_BL, segments_BL) for _, tokens_BL, segments_BL in batches],
            [self.decoder.context(segments_BL) for _, _, segments_BL in batches],
            between=(self.cross_attention, attends),
            remat=self.config.remat,
        )

    def weighted_nll(
        self,
        x_BLD: Float[Array, "B L D"],
        tokens_BL: Int[Array, "B L"],
        weights_BL: Float[Array, "B L"],
    ) -> Float[Array, ""]:
        """`loss.weighted_nll` of a decoder output."""
        return self.decoder.weighted_nll(
            x_BLD, tokens_BL, weights_BL, max_logits_mib=self.config.max_logits_mib
        )

    def __call__(
        self,
        images: Images,
        tokens_BL: Int[Array, "B L"],
        segments_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Float32 logits of the next token at every position.

        Args:
          images: uint8 RGB, or floats normalised with CLIP's mean and deviation.
          tokens_BL: int32 ids.
          segments_BL: 0 for padding, equal numbers for tokens that may see each other; a 0/1
            attention mask is a valid value. None: no padding.

        Raises:
          ValueError: more `<image>` tokens than images in a row (checked here unless traced; the
            input pipeline checks every batch with `check_image_count`).
        """
        if segments_BL is None:
            segments_BL = jnp.ones_like(tokens_BL)
        lenient = self.config.cross_attention.uniform_beyond_images
        if not lenient and not isinstance(tokens_BL, jax.core.Tracer):
            check_image_count(np.asarray(tokens_BL), self.config.image_token, images.shape[1])
        x_BLD = self.together([(self.encode_images(images), tokens_BL, segments_BL)])[0]
        return self.decoder.logits(x_BLD)


def check_image_count(
    tokens_BL: np.ndarray, image_token: int, num_images: int | np.ndarray
) -> None:
    """ValueError naming the first row with more `<image>` tokens than images (an int, or (B,)).

    Without it such text would see no image at all; the original attends uniformly to every image.
    """
    counts_B = (tokens_BL == image_token).sum(axis=1)
    limits_B = np.broadcast_to(num_images, counts_B.shape)
    for row in np.flatnonzero(counts_B > limits_B):
        raise ValueError(
            f"row {row} has {counts_B[row]} <image> tokens but {limits_B[row]} images: "
            "give every <image> its picture, or remove the mark from the text"
        )
