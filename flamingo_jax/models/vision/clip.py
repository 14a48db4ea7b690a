"""CLIP vision transformer (arXiv 2103.00020), giving patch tokens as OpenFlamingo takes them."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from flamingo_jax.models.block import (
    AttentionContext,
    Block,
    BlockConfig,
    layer_norm,
    linear,
    stack,
)
from flamingo_jax.parallel.fsdp import RematPolicy, fsdp_remat_layer, gather
from flamingo_jax.parallel.mesh import constrain_batch

Pixels = UInt8[Array, "*B H W 3"] | Float[Array, "*B H W 3"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(BlockConfig):
    """A CLIP ViT. `activation`: "quick_gelu" for OpenAI's weights, "gelu" for most others."""

    kind: Literal["clip"] = "clip"
    image_size: int = 224
    patch_size: int = 14
    projection_width: int = 0  # of the pooled embedding shared with CLIP's text tower; 0: none
    # Hold CLIP's last norm also where there is no projection, as a bare CLIP vision model does.
    post_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} does not divide by patch_size {self.patch_size}"
            )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def normalize(images: Pixels) -> Float[Array, "... 3"]:
    """uint8 RGB → CLIP's normalised float32; floats are taken as normalised already."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) / 255 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)


class VisionTransformer(nnx.Module):
    """Patches, class token, learned positions, pre-norm layers."""

    def __init__(self, config: ClipVisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, patch = config.width, config.patch_size

        def embedding(*shape: int) -> nnx.Param:
            return nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), shape))

        self.patch_embedding = linear(3 * patch**2, width, bias=False, dtype=dtype, rngs=rngs)
        self.class_embedding = embedding(width)
        self.position_embedding = embedding(config.num_patches + 1, width)
        self.pre_norm = layer_norm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.layers = stack(lambda r: Block(config, dtype=dtype, rngs=r), config.num_layers, rngs)
        pooled = config.projection_width > 0
        self.post_norm = (
            layer_norm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
            if pooled or config.post_norm
            else None
        )
        self.projection = (
            linear(width, config.projection_width, bias=False, dtype=dtype, rngs=rngs)
            if pooled
            else None
        )
        self.patch_size = patch
        self.dtype = dtype

    def _tokens(self, images_BHWC: Pixels, remat: RematPolicy = "none") -> Float[Array, "B N D"]:
        patches = rearrange(
            normalize(images_BHWC).astype(self.dtype),
            "b (h p) (w q) c -> b (h w) (p q c)",
            p=self.patch_size,
            q=self.patch_size,
        )
        x_BND = gather(self.patch_embedding, self.dtype)(patches)
        class_BxD = jnp.broadcast_to(
            self.class_embedding[...].astype(x_BND.dtype), (len(x_BND), 1, x_BND.shape[-1])
        )
        x_BND = jnp.concatenate([class_BxD, x_BND], axis=1)
        positions_ND = gather(self.position_embedding, self.dtype)[...]
        x_BND = self.pre_norm(x_BND + positions_ND.astype(x_BND.dtype))
        layer = fsdp_remat_layer(lambda block, x: block(x, AttentionContext()), self.dtype, remat)
        return jax.lax.scan(
            lambda x, block: (layer(block, constrain_batch(x)), None), x_BND, self.layers
        )[0]

    def __call__(
        self, images_BHWC: Pixels, *, remat: RematPolicy = "none"
    ) -> Float[Array, "B N D"]:
        """Patch tokens of the last layer, without the class token and before CLIP's last norm:
        what the released OpenFlamingo models were trained on (OpenCLIP ≤ 2.22)."""
        return self._tokens(images_BHWC, remat)[:, 1:]

    def pooled(self, images_BHWC: Pixels) -> Float[Array, "B P"]:
        """CLIP's image embedding, not normalised to unit length."""
        if self.post_norm is None or self.projection is None:
            raise ValueError("pooled() needs vision.projection_width > 0")
        return self.projection(self.post_norm(self._tokens(images_BHWC)[:, 0]))
