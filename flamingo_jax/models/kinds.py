"""Lists what a model asks of a kind of encoder, connector or fusion: it knows nothing else of it.

Each kind is a frozen dataclass beside its module. Its fields are config keys, its `kind` chooses it
among others, and its parameters' paths begin with `parameters`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.models.matmuls import Account, BatchSize
from flamingo_jax.parallel.remat import RematPolicy


class Kind(Protocol):
    """Is asked of every part of a model."""

    parameters: ClassVar[str]

    def heads(self) -> dict[str, int]:
        """Returns the numbers of heads that a mesh's `tensor` axis must divide, by config key."""
        ...


class EncoderKind(Kind, Protocol):
    """Pictures (B, H, W, 3) → features (B, P, D)."""

    @property
    def image_size(self) -> int:
        """Height and width of a picture."""
        ...

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_patches(self) -> int:
        """P."""
        ...

    def make(self, *, remat: RematPolicy, dtype: DTypeLike, rngs: nnx.Rngs) -> Any:
        """Returns the module: pictures → features."""
        ...

    def owns(self, path: str) -> bool:
        """Returns whether a parameter of the model is the encoder's."""
        ...

    def account(self, size: BatchSize) -> Account: ...


class ConnectorKind(Kind, Protocol):
    """Features (B, T, F, P, D) → R vectors (B, T, R, M) of each image or video."""

    @property
    def num_layers(self) -> int: ...

    def vectors(self, num_patches: int, width: int) -> tuple[int, int]:
        """Returns R and M, for features of one frame."""
        ...

    def check_images(self, images: int, frames: int = 1) -> None:
        """Raises ValueError where rows cannot have so many images, or videos so many frames."""
        ...

    def make(self, width: int, *, remat: RematPolicy, dtype: DTypeLike, rngs: nnx.Rngs) -> Any:
        """Returns the module: `inputs(features)` are its rows, which its call makes vectors of."""
        ...

    def account(self, size: BatchSize, num_patches: int, width: int) -> Account: ...


class FusionKind(Kind, Protocol):
    """Brings the text to the vectors."""

    @property
    def interval(self) -> int:
        """Decoder layers in a group, see `LayerStack`."""
        ...

    @property
    def uniform_beyond_images(self) -> bool:
        """Tells whether text may refer to an image that is missing."""
        ...

    def check(self, decoder: DecoderConfig) -> None:
        """Raises ValueError where the decoder does not fit."""
        ...

    def make(
        self, decoder: DecoderConfig, vector_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> Any:
        """Returns a stack of modules, one for each group of layers, or None."""
        ...

    def see(
        self,
        vectors: Sequence[Float[Array, "_ _ R M"]],
        tokens: Sequence[Int[Array, "_ _"]],
        segments: Sequence[Int[Array, "_ _"]],
        image_token: int,
    ) -> Any:
        """Returns what these modules are called with beside the text."""
        ...

    def account(
        self, size: BatchSize, decoder: DecoderConfig, num_vectors: int, vector_width: int
    ) -> Account: ...
