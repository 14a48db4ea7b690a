"""Flamingo: a vision encoder and a language model, joined by resampler and cross-attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from flamingo_jax.models.block import stack
from flamingo_jax.models.connectors.perceiver import PerceiverConfig, PerceiverResampler
from flamingo_jax.models.decoder import Decoder, DecoderConfig, segment_positions
from flamingo_jax.models.fusion.cross_attention import (
    GatedCrossAttention,
    GatedCrossAttentionConfig,
    visible_image,
)
from flamingo_jax.models.text import Texts
from flamingo_jax.models.vision.clip import ClipVisionConfig, VisionTransformer
from flamingo_jax.parallel.fsdp import RematPolicy
from flamingo_jax.parallel.mesh import concat_per_device, constrain_batch, split_per_device
from flamingo_jax.text.documents import check_image_count

Images = UInt8[Array, "B T F H W 3"] | Float[Array, "B T F H W 3"]
Patches = Float[Array, "B T F N D"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model. Its token ids: see `DecoderConfig`."""

    encoder: ClipVisionConfig
    connector: PerceiverConfig = field(default_factory=PerceiverConfig)
    fusion: GatedCrossAttentionConfig = field(default_factory=GatedCrossAttentionConfig)
    decoder: DecoderConfig
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
        if not 1 <= self.fusion.interval <= self.decoder.num_layers:
            raise ValueError(
                f"fusion.interval is {self.fusion.interval}, it must be between "
                f"1 and the decoder's {self.decoder.num_layers} layers"
            )

    @property
    def end_of_chunk_token(self) -> int:
        return self.decoder.vocab_size

    @property
    def image_token(self) -> int:
        return self.decoder.vocab_size + 1


# Keys of configs that were written before a model had an encoder, a connector and a fusion.
FORMER_KEYS = {"vision": "encoder", "resampler": "connector", "cross_attention": "fusion"}


def upgraded(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored `ModelConfig` with today's keys: files written before still open."""
    kinds = {f.name: f.type.kind for f in fields(ModelConfig) if hasattr(f.type, "kind")}
    renamed = {FORMER_KEYS.get(key, key): value for key, value in model.items()}
    return {
        key: {"kind": kinds[key], **value} if key in kinds else value
        for key, value in renamed.items()
    }


class VisionLanguageModel(nnx.Module):
    """The model of arXiv 2204.14198, as OpenFlamingo (arXiv 2308.01390) builds it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dtype = dtype = jnp.dtype(config.dtype)
        cross, decoder = config.fusion, config.decoder
        self.vision = VisionTransformer(config.encoder, dtype=dtype, rngs=rngs)
        self.resampler = PerceiverResampler(
            config.connector, config.encoder.width, dtype=dtype, rngs=rngs
        )
        self.decoder = Decoder(decoder, interval=cross.interval, dtype=dtype, rngs=rngs)
        self.cross_attention = stack(
            lambda r: GatedCrossAttention(
                cross, decoder.width, config.encoder.width, dtype=dtype, rngs=r
            ),
            decoder.num_layers // cross.interval,
            rngs,
        )
        self.config = config

    def patches(self, images: Sequence[Images]) -> list[Patches]:
        """What the vision encoder sees in the frames of several batches: all that a frozen one is
        needed for."""
        frames = [rearrange(x, "b t f h w c -> (b t f) h w c") for x in images]
        seen = self._of_rows(partial(self.vision, remat=self.config.remat), frames)
        return [
            constrain_batch(y.reshape(*x.shape[:3], *y.shape[1:]))
            for x, y in zip(images, seen, strict=True)
        ]

    def latents(self, patches: Sequence[Patches]) -> list[Float[Array, "_ _ R D"]]:
        """What the texts see of each image or video of several batches."""
        media = [self.resampler.flat_media(x_BTFND) for x_BTFND in patches]
        made = self._of_rows(partial(self.resampler.of_media, remat=self.config.remat), media)
        return [
            constrain_batch(y.reshape(*x.shape[:2], *y.shape[1:]))
            for x, y in zip(patches, made, strict=True)
        ]

    def _of_rows(self, apply: Callable[[Array], Array], parts: Sequence[Array]) -> list[Array]:
        """`apply` to the rows of all arrays of one shape at once; no rows need no work."""
        made: list[Array] = list(parts)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, part in enumerate(parts):
            by_shape.setdefault(part.shape[1:], []).append(i)
        for same in by_shape.values():
            counts = [len(parts[i]) for i in same]
            joined = concat_per_device([parts[i] for i in same])
            if len(joined):
                rows = split_per_device(apply(joined), counts)
            else:
                shape = jax.eval_shape(apply, jnp.zeros((1, *joined.shape[1:]), joined.dtype))
                rows = [jnp.zeros((0, *shape.shape[1:]), shape.dtype)] * len(same)
            for i, own in zip(same, rows, strict=True):
                made[i] = own
        return made

    def encode_images(self, images: Images) -> Float[Array, "B T R D"]:
        """Latents of each image: uint8 RGB or normalised floats, F frames each (1 for a still)."""
        return self.latents(self.patches([images]))[0]

    def together(
        self,
        batches: Sequence[tuple[Float[Array, "_ _ R M"], Int[Array, "_ _"], Int[Array, "_ _"]]],
        parts: Sequence[int] | None = None,
    ) -> list[Float[Array, "_ _ D"]]:
        """Decoder outputs of several batches of (latents, tokens, segments), of any shapes: what
        one call per batch gives, with weights gathered and read once for all.

        `parts`: of each batch, how many equal parts a row has that no segment reaches across; what
        is given does not change what comes out, but the decoder's attention looks at one part at a
        time. None: 1.

        A row may be longer than the decoder's learned positions where each of its segments fits;
        the caller checks that they do (`DecoderConfig.check_length`).
        """
        media, tokens, segments = zip(*batches, strict=True)
        image = self.config.image_token
        visible = [visible_image(t, image, s) for t, s in zip(tokens, segments, strict=True)]
        rows = Texts.of(tokens)

        def look(block: GatedCrossAttention, x_ND: Array, _: Texts) -> Array:
            return block.together(x_ND, rows, block.keys_values_of(media), visible)

        def in_parts(xs: Sequence[Array]) -> list[Array]:
            counts = parts or [1] * len(xs)
            return [x.reshape(n * len(x), -1) for x, n in zip(xs, counts, strict=True)]

        tokens_in, segments_in = in_parts(tokens), in_parts(segments)
        made = self.decoder.run_layers(
            [
                self.decoder.embed_at(t, segment_positions(s))
                for t, s in zip(tokens_in, segments_in, strict=True)
            ],
            [self.decoder.context(s) for s in segments_in],
            between=(self.cross_attention, look),
            remat=self.config.remat,
        )
        return [x.reshape(*shape, -1) for x, shape in zip(made, rows.shapes, strict=True)]

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
            input pipeline checks every batch with `check_image_count`); rows longer than the
            decoder's learned positions.
        """
        self.config.decoder.check_length(tokens_BL.shape[1])
        if segments_BL is None:
            segments_BL = jnp.ones_like(tokens_BL)
        lenient = self.config.fusion.uniform_beyond_images
        if not lenient and not isinstance(tokens_BL, jax.core.Tracer):
            check_image_count(np.asarray(tokens_BL), self.config.image_token, images.shape[1])
        x_BLD = self.together([(self.encode_images(images), tokens_BL, segments_BL)])[0]
        return self.decoder.logits(x_BLD)
