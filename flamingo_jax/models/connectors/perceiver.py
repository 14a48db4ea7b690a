"""Perceiver Resampler: any number of patch tokens and frames become a fixed number of latents."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.models.layers import FeedForward, LayerNorm, Linear, linear_of_norm, stack, value
from flamingo_jax.models.matmuls import Account, BatchSize, Layers, Reads, Scores, Stage, Weights
from flamingo_jax.models.text import STATIC, TokenLayout, merge_heads
from flamingo_jax.models.transformer import LayerStack
from flamingo_jax.ops.attention import attention
from flamingo_jax.ops.attention_kernels import AttentionChoice
from flamingo_jax.ops.fused import standardize
from flamingo_jax.parallel.remat import RematPolicy, keep_elementwise, policy_for_new_modules


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """Section 2.1 of the Flamingo paper (arXiv 2204.14198); OpenFlamingo's sizes."""

    parameters: ClassVar[str] = "resampler"  # what their paths begin with
    kind: Literal["perceiver"] = "perceiver"
    num_layers: int = 6
    num_latents: int = 64
    num_heads: int = 8
    head_dim: int = 64
    feed_forward_multiple: int = 4
    max_frames: int = 0  # > 0: a learned embedding per frame of a video
    max_media: int = 0  # > 0: a learned embedding per image position in the row
    attention: AttentionChoice = "auto"  # as in `BlockConfig`

    def make(
        self, width: int, *, remat: RematPolicy, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> "PerceiverResampler":
        return PerceiverResampler(self, width, remat=remat, dtype=dtype, rngs=rngs)

    def vectors(self, num_patches: int, width: int) -> tuple[int, int]:
        """Returns how many vectors an image has, and their width."""
        return self.num_latents, width

    def heads(self) -> dict[str, int]:
        """Returns what a mesh's `tensor` axis must divide."""
        return {"num_heads": self.num_heads}

    def account(self, size: BatchSize, num_patches: int, width: int) -> Account:
        """`num_patches`, `width`: of the features of one frame."""
        images = size.rows * size.images
        patches, latents = images * size.frames * num_patches, images * self.num_latents
        return Account(
            part="resampler",
            parameters=self.parameters,
            stages=(
                Stage("patches", r"^\w+_embedding$"),
                Stage("latents", r"^(?!norm)"),
                Stage("vectors", r"^norm/"),
            ),
            weights=(
                # Patches enter each layer as they are, latents as the layer below left them.
                Weights(r"^layers/(key|value)/", patches, "patches", "latents", True),
                Weights(r"^layers/.*kernel$", latents, "latents", "latents"),
            ),
            scores=(
                Scores(
                    pattern=r"^layers/out/kernel$",
                    count=images * self.num_layers,
                    num_heads=self.num_heads,
                    head_width=self.head_dim,
                    num_queries=self.num_latents,
                    num_keys=size.frames * num_patches + self.num_latents,
                    stage="latents",
                    keys="latents",
                    name="resampler" if size.images else "",
                    choice=self.attention,
                ),
            ),
            layers=(Layers(self.num_layers * width * latents, "latents"),),
            reads=(Reads(self.num_layers * width * patches, "latents", "features"),),
            new=True,
        )

    def check_images(self, images: int, frames: int = 1) -> None:
        """Raises ValueError where rows of so many images, or videos of so many frames, lack
        embeddings."""
        for name, count in (("frames", frames), ("media", images)):
            most = getattr(self, f"max_{name}")
            if most and count > most:
                raise ValueError(
                    f"{count} {name} given, the resampler has embeddings for {most}: "
                    f"give fewer, or raise connector.max_{name}"
                )


class ResamplerLayer(nnx.Module):
    """y = z + attention(norm(z), [norm(x), norm(z)]); y + feed_forward(y), of latents z and patch
    tokens x."""

    def __init__(self, config: PerceiverConfig, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        self.media_norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.latent_norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.query = Linear(width, inner, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.key = Linear(width, inner, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.value = Linear(width, inner, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.out = Linear(inner, width, bias=False, split="in", dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(width, config.feed_forward_multiple, dtype=dtype, rngs=rngs)
        self.head_dim = config.head_dim

    def __call__(
        self, z_ND: Float[Array, "N D"], patches: "Patches", past: None = None
    ) -> tuple[Float[Array, "N D"], None]:
        z_ND = z_ND + self.out(patches.attend(*self.project(z_ND, patches)))
        return z_ND + self.feed_forward(z_ND), None

    def project(
        self, z_ND: Float[Array, "N D"], patches: "Patches"
    ) -> tuple[Float[Array, "B R H K"], Float[Array, "B S H K"], Float[Array, "B S H K"]]:
        """Returns queries of the latents; keys and values of the patches, then of the latents."""
        normed_ND, x_BPD = self.latent_norm(z_ND), patches.standardized_BPD

        def of_latents(layer: Linear) -> Float[Array, "B R E"]:
            return patches.layout.split(layer(normed_ND))[0]

        def of_both(layer: Linear) -> Float[Array, "B S E"]:
            of_patches = linear_of_norm(layer, self.media_norm, x_BPD)
            return jnp.concatenate([of_patches, of_latents(layer)], axis=1)

        q, k, v = of_latents(self.query), of_both(self.key), of_both(self.value)
        return self._heads(q), self._heads(k), self._heads(v)

    def _heads(self, y_BSE: Float[Array, "B S E"]) -> Float[Array, "B S H K"]:
        return rearrange(y_BSE, "b s (h k) -> b s h k", k=self.head_dim)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Patches:
    """Holds what the latents of B images read: their patch tokens, then the latents themselves.

    Attributes:
      standardized_BPD: patch tokens, frames behind one another, with mean 0 and variance 1.
      layout: of the latents, (B, R).
    """

    standardized_BPD: Float[Array, "B P D"]
    layout: TokenLayout = field(metadata=STATIC)
    choice: AttentionChoice = field(metadata=STATIC)

    def attend(
        self,
        q_BRHK: Float[Array, "B R H K"],
        k_BSHK: Float[Array, "B S H K"],
        v_BSHK: Float[Array, "B S H K"],
    ) -> Float[Array, "N HK"]:
        """Returns what each latent gathers."""
        y_BRHK = attention(q_BRHK, k_BSHK, v_BSHK, choice=self.choice)
        return keep_elementwise(self.layout.join([merge_heads(y_BRHK)]))


class PerceiverResampler(nnx.Module):
    """Learned latents that read the patch tokens of one image, or of all frames of one video."""

    def __init__(
        self,
        config: PerceiverConfig,
        width: int,
        *,
        remat: RematPolicy = "none",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
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
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.config = config
        self.remat = policy_for_new_modules(remat)
        self.dtype = dtype

    def inputs(self, x_BTFPD: Float[Array, "B T F P D"]) -> Float[Array, "BT FP D"]:
        """Returns what the latents read, one row an image or video, frames behind one another.

        Raises:
          ValueError: more frames or images than embeddings.
        """
        images, frames = x_BTFPD.shape[1:3]
        self.config.check_images(images, frames)
        x_BTFPD = x_BTFPD.astype(self.dtype)
        for table, count, axis in (
            (self.frame_embedding, frames, 2),
            (self.media_embedding, images, 1),
        ):
            if table is None:
                continue
            shape = [1] * 4 + [-1]
            shape[axis] = count
            x_BTFPD = x_BTFPD + table[:count].astype(self.dtype).reshape(shape)
        return rearrange(x_BTFPD, "b t f p d -> (b t) (f p) d")

    @property
    def stack(self) -> LayerStack:
        return LayerStack([self.layers], remat=self.remat)

    def start(self, x_BPD: Float[Array, "B P D"]) -> tuple[Float[Array, "N D"], Patches]:
        """Returns the latents before the first layer, and what they read."""
        x_BPD = standardize(x_BPD, dtype=self.dtype)
        latents_RD = value(self.latents, self.dtype)
        z_BRD = jnp.broadcast_to(latents_RD, (len(x_BPD), *latents_RD.shape))
        layout = TokenLayout.of([z_BRD])
        return layout.join([z_BRD]), Patches(x_BPD, layout=layout, choice=self.config.attention)

    def __call__(self, x_BPD: Float[Array, "B P D"]) -> Float[Array, "B R D"]:
        """Returns the latents of each row of `inputs`."""
        z_ND, patches = self.start(x_BPD)
        z_ND, _ = self.stack.run(z_ND, patches)
        return self.norm(*patches.layout.split(z_ND))
