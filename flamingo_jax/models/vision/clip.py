"""CLIP vision transformer (arXiv 2103.00020), giving patch tokens as OpenFlamingo takes them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from flamingo_jax.models.layers import LayerNorm, Linear, stack, value
from flamingo_jax.models.matmuls import Account, BatchSize, Layers, Reads, Scores, Stage, Weights
from flamingo_jax.models.text import AllToAll, TokenLayout
from flamingo_jax.models.transformer import Block, BlockConfig, LayerStack
from flamingo_jax.parallel.remat import RematPolicy

Pixels = UInt8[Array, "*B H W 3"] | Float[Array, "*B H W 3"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(BlockConfig):
    """A CLIP ViT. `activation`: "quick_gelu" for OpenAI's weights, "gelu" for most others."""

    parameters: ClassVar[str] = "vision"  # what their paths begin with
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

    def make(self, *, remat: RematPolicy, dtype: DTypeLike, rngs: nnx.Rngs) -> "VisionTransformer":
        return VisionTransformer(self, remat=remat, dtype=dtype, rngs=rngs)

    def owns(self, path: str) -> bool:
        """Returns whether a parameter of the model is the encoder's."""
        return path.startswith(f"{self.parameters}/")

    def heads(self) -> dict[str, int]:
        """Returns what a mesh's `tensor` axis must divide."""
        return {"num_heads": self.num_heads}

    def account(self, size: BatchSize) -> Account:
        frames = size.rows * size.images * size.frames
        tokens = self.num_patches + 1
        return Account(
            part="vision",
            parameters=self.parameters,
            stages=(Stage("features", r"^(?!projection|post_norm)"),),
            weights=(
                Weights(r"^patch_embedding/kernel$", frames * self.num_patches, None),
                Weights(r"^layers/.*kernel$", frames * tokens, "features", "features"),
            ),
            scores=(
                Scores(
                    pattern=r"^layers/.*out/kernel$",
                    count=frames * self.num_layers,
                    num_heads=self.num_heads,
                    head_width=self.head_width,
                    num_queries=tokens,
                    num_keys=tokens,
                    stage="features",
                    keys="features",
                    name="vision" if size.images else "",
                    choice=self.attention,
                ),
            ),
            layers=(Layers(self.num_layers * self.width * frames * tokens, "features"),),
            reads=(Reads(3 * self.patch_size**2 * frames * self.num_patches, in_bytes=True),),
        )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def normalize(images: Pixels) -> Float[Array, "... 3"]:
    """Returns uint8 RGB as CLIP's normalised float32; floats are taken as normalised already."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) / 255 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)


class VisionTransformer(nnx.Module):
    """Patches and a class token, learned positions, pre-norm layers."""

    def __init__(
        self,
        config: ClipVisionConfig,
        *,
        remat: RematPolicy = "none",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        width, patch = config.width, config.patch_size

        def embedding(*shape: int) -> nnx.Param:
            return nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), shape))

        self.patch_embedding = Linear(3 * patch**2, width, bias=False, dtype=dtype, rngs=rngs)
        self.class_embedding = embedding(width)
        self.position_embedding = embedding(config.num_patches + 1, width)
        self.pre_norm = LayerNorm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.layers = stack(lambda r: Block(config, dtype=dtype, rngs=r), config.num_layers, rngs)
        pooled = config.projection_width > 0
        self.post_norm = (
            LayerNorm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
            if pooled or config.post_norm
            else None
        )
        self.projection = (
            Linear(width, config.projection_width, bias=False, dtype=dtype, rngs=rngs)
            if pooled
            else None
        )
        self.config = config
        self.remat = remat
        self.dtype = dtype

    def tokens(self, images_BHWC: Pixels) -> Float[Array, "B P1 D"]:
        """Returns the last layer's class token and patch tokens, before CLIP's last norm."""
        pixels_BPE = rearrange(
            jnp.asarray(normalize(images_BHWC), self.dtype),
            "b (h p) (w q) c -> b (h w) (p q c)",
            p=self.config.patch_size,
            q=self.config.patch_size,
        )
        x_BPD = self.patch_embedding(pixels_BPE)
        class_BxD = jnp.broadcast_to(
            self.class_embedding[...].astype(x_BPD.dtype), (len(x_BPD), 1, x_BPD.shape[-1])
        )
        x_BPD = jnp.concatenate([class_BxD, x_BPD], axis=1)
        x_BPD = self.pre_norm(x_BPD + value(self.position_embedding, self.dtype))
        patches = AllToAll(layout=TokenLayout.of([x_BPD]), choice=self.config.attention)
        stack = LayerStack([self.layers], remat=self.remat)
        x_ND, _ = stack.run(patches.layout.join([x_BPD]), patches)
        return patches.layout.split(x_ND)[0]

    def __call__(self, images_BHWC: Pixels) -> Float[Array, "B P D"]:
        """Returns patch tokens of the last layer, without the class token and before CLIP's last
        norm: what the released OpenFlamingo models were trained on (OpenCLIP ≤ 2.22)."""
        return self.tokens(images_BHWC)[:, 1:]

    def pooled(self, images_BHWC: Pixels) -> Float[Array, "B E"]:
        """Returns CLIP's image embedding, not normalised to unit length."""
        if self.post_norm is None or self.projection is None:
            raise ValueError("pooled() needs encoder.projection_width > 0")
        return self.projection(self.post_norm(self.tokens(images_BHWC)[:, 0]))
