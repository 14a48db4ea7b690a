"""A vision-language model: encoder → connector → fusion with a decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from flamingo_jax.models.connectors.perceiver import PerceiverConfig
from flamingo_jax.models.decoder import Decoder, DecoderConfig
from flamingo_jax.models.fusion.gated_cross_attention import GatedCrossAttentionConfig, Images
from flamingo_jax.models.kinds import ConnectorKind, EncoderKind, FusionKind
from flamingo_jax.models.matmuls import Account, BatchSize
from flamingo_jax.models.text import Text, TokenLayout
from flamingo_jax.models.transformer import LayerStack, layer_numbers, locate
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.parallel.mesh import constrain_batch, map_rows
from flamingo_jax.parallel.remat import RematPolicy
from flamingo_jax.parallel.sharding import ParamFacts
from flamingo_jax.text.documents import check_image_count

Pictures = UInt8[Array, "B T F H W 3"] | Float[Array, "B T F H W 3"]
Features = Float[Array, "B T F P D"]
Vectors = Float[Array, "B T R M"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model. Its token ids: see `DecoderConfig`.

    Attributes:
      encoder: pictures to features.
      connector: the features of an image or video to a fixed number of vectors.
      fusion: how the text comes to the vectors.
      decoder: the language model.
      dtype: of activations and matmul inputs.
      remat: what a layer keeps for its gradient, see `parallel/remat.py`.
      max_logits_mib: the loss looks at as many positions of each row at a time as have this much of
        float32 logits on a device.
    """

    encoder: ClipVisionConfig
    connector: PerceiverConfig = field(default_factory=PerceiverConfig)
    fusion: GatedCrossAttentionConfig = field(default_factory=GatedCrossAttentionConfig)
    decoder: DecoderConfig
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: RematPolicy = "none"
    max_logits_mib: int = 256

    def __post_init__(self) -> None:
        if self.max_logits_mib < 1:
            raise ValueError(f"max_logits_mib is {self.max_logits_mib}, it must be at least 1")
        self.fusion.check(self.decoder)

    def locate(self, path: str) -> tuple[str, range | None]:
        """Returns a parameter's path without its layer, and the numbers of the layers stacked in
        it; None: it is in none.

        A block that is inserted before a decoder layer bears the number of that layer.
        """
        part, _, own = path.partition("/")
        interval, num_layers = self.fusion.interval, self.decoder.num_layers
        if part == self.fusion.parameters:
            return path, layer_numbers(num_layers, interval, interval - 1)
        if part == self.decoder.parameters:
            own, numbers = locate(own, num_layers, interval)
        else:
            is_encoder = part == self.encoder.parameters
            own, numbers = locate(own, (self.encoder if is_encoder else self.connector).num_layers)
        return f"{part}/{own}", numbers

    @property
    def vectors(self) -> tuple[int, int]:
        """Counts the vectors that the text may see of each image, and gives their width."""
        return self.connector.vectors(self.encoder.num_patches, self.encoder.width)

    def accounts(self, size: BatchSize) -> tuple[Account, ...]:
        """Returns what every part says of its matmuls, in the order in which gradients flow."""
        encoder, connector, fusion = self.encoder, self.connector, self.fusion
        return (
            encoder.account(size),
            connector.account(size, encoder.num_patches, encoder.width),
            fusion.account(size, self.decoder, *self.vectors),
            *self.decoder.accounts(size, fusion.interval),
        )

    def int8_axis(self, path: str, facts: ParamFacts) -> int | None:
        """Returns the contracted axis of what int8 holds: matrices of the two pretrained models."""
        pretrained = self.encoder.parameters, self.decoder.parameters
        return facts.contracted if path.partition("/")[0] in pretrained else None

    def check_marks(self, tokens_BL: np.ndarray, num_images: int | np.ndarray) -> None:
        """Raises ValueError where a row has an `<image>` whose picture is not there."""
        if not self.fusion.uniform_beyond_images:
            check_image_count(tokens_BL, self.image_token, num_images)

    @property
    def end_of_chunk_token(self) -> int:
        return self.decoder.vocab_size

    @property
    def image_token(self) -> int:
        return self.decoder.vocab_size + 1


# mypy holds today's kinds to what a model asks.
_KINDS: tuple[type[EncoderKind], type[ConnectorKind], type[FusionKind]] = (
    ClipVisionConfig,
    PerceiverConfig,
    GatedCrossAttentionConfig,
)
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
    """Encoder → connector → fusion with a decoder.

    Each kind says what the paths of its parameters begin with (`ClipVisionConfig.parameters` and so
    on): a module is found under that name.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.dtype)
        self.config = config
        how: dict[str, Any] = {"remat": config.remat, "dtype": self.dtype, "rngs": rngs}
        encoder, connector, fusion = config.encoder, config.connector, config.fusion
        setattr(self, encoder.parameters, encoder.make(**how))
        setattr(self, connector.parameters, connector.make(encoder.width, **how))
        self.decoder = Decoder(config.decoder, interval=fusion.interval, **how)
        _, width = config.vectors
        inserted = fusion.make(config.decoder, width, dtype=self.dtype, rngs=rngs)
        setattr(self, fusion.parameters, inserted)

    @property
    def encoder(self) -> Any:
        return getattr(self, self.config.encoder.parameters)

    @property
    def connector(self) -> Any:
        return getattr(self, self.config.connector.parameters)

    @property
    def layers(self) -> LayerStack:
        """The decoder's layers, with those of the fusion between them."""
        return self.decoder.stack(getattr(self, self.config.fusion.parameters))

    def encode(self, pictures: Sequence[Pictures]) -> list[Features]:
        """Returns the features of the frames of several batches: all that a frozen encoder is
        needed for."""
        frames = [rearrange(x, "b t f h w c -> (b t f) h w c") for x in pictures]
        features = map_rows(self.encoder, frames)
        return [
            constrain_batch(y.reshape(*x.shape[:3], *y.shape[1:]))
            for x, y in zip(pictures, features, strict=True)
        ]

    def connect(self, features: Sequence[Features]) -> list[Vectors]:
        """Returns the vectors of each image or video of several batches."""
        vectors = map_rows(self.connector, list(map(self.connector.inputs, features)))
        return [
            constrain_batch(y.reshape(*x.shape[:2], *y.shape[1:]))
            for x, y in zip(features, vectors, strict=True)
        ]

    def image_vectors(self, pictures: Pictures) -> Vectors:
        """Returns what the text may see of each image: uint8 RGB or normalised floats, F frames
        each (1 for a still)."""
        return self.connect(self.encode([pictures]))[0]

    def read(
        self,
        vectors: Sequence[Vectors],
        tokens: Sequence[Int[Array, "_ _"]],
        segments: Sequence[Int[Array, "_ _"]],
        parts: Sequence[int] | None = None,
    ) -> tuple[Float[Array, "N D"], Text, Images]:
        """Returns what enters the first layer, and who sees whom; see `hidden_states`."""
        tokens, segments = (list(map(jnp.asarray, xs)) for xs in (tokens, segments))
        counts = parts or [1] * len(tokens)
        in_parts = [
            [x.reshape(n * len(x), -1) for x, n in zip(xs, counts, strict=True)]
            for xs in (tokens, segments)
        ]
        images = self.config.fusion.see(vectors, tokens, segments, self.config.image_token)
        return *self.decoder.read(*in_parts), images

    def hidden_states(
        self,
        vectors: Sequence[Vectors],
        tokens: Sequence[Int[Array, "_ _"]],
        segments: Sequence[Int[Array, "_ _"]],
        parts: Sequence[int] | None = None,
    ) -> list[Float[Array, "_ _ D"]]:
        """Returns the decoder's outputs for several batches of any shapes: what one call per batch
        gives, with weights gathered and read once for all.

        Args:
          vectors: of each batch's images.
          tokens: of each batch. A row may be longer than the decoder's learned positions where each
            of its segments fits; the caller checks that they do (`DecoderConfig.check_length`).
          segments: of each batch, see `__call__`.
          parts: of each batch, how many equal parts a row has that no segment reaches across. What
            comes out is the same, but the decoder's attention looks at one part at a time. None: 1.
        """
        x_ND, _ = self.layers.run(*self.read(vectors, tokens, segments, parts))
        return TokenLayout.of(tokens).split(x_ND)

    def weighted_nll(
        self,
        x_BLD: Float[Array, "B L D"],
        tokens_BL: Int[Array, "B L"],
        weights_BL: Float[Array, "B L"],
    ) -> Float[Array, ""]:
        """Returns `cross_entropy.weighted_nll` of a hidden state."""
        return self.decoder.weighted_nll(
            x_BLD, tokens_BL, weights_BL, max_logits_mib=self.config.max_logits_mib
        )

    def __call__(
        self,
        pictures: Pictures,
        tokens_BL: Int[Array, "B L"],
        segments_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Returns float32 logits of the next token at every position.

        Args:
          pictures: uint8 RGB, or floats normalised with the encoder's mean and deviation.
          tokens_BL: int32 ids.
          segments_BL: 0 for padding, equal numbers for tokens that may see each other; a 0/1
            attention mask is a valid value. None: no padding.

        Raises:
          ValueError: more `<image>` tokens than images in a row (checked here unless traced; the
            input pipeline checks every batch with `check_image_count`); rows longer than the
            decoder's learned positions.
        """
        self.config.decoder.check_length(tokens_BL.shape[1])
        if not isinstance(tokens_BL, jax.core.Tracer):
            self.config.check_marks(np.asarray(tokens_BL), pictures.shape[1])
        if segments_BL is None:
            segments_BL = jnp.ones_like(tokens_BL)
        vectors = self.image_vectors(pictures)
        x_ND, text, images = self.read([vectors], [tokens_BL], [segments_BL])
        x_ND, _ = self.layers.run(x_ND, text, images)
        return self.decoder.logits(*text.layout.split(x_ND))
