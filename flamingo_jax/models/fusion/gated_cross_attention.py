"""Gated cross-attention (GATED XATTN-DENSE), section 2.2 of Flamingo's paper (arXiv 2204.14198)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.models.layers import FeedForward, LayerNorm, Linear, stack
from flamingo_jax.models.matmuls import Account, BatchSize, Layers, Reads, Scores, Stage, Weights
from flamingo_jax.models.text import STATIC, TokenLayout, merge_heads, visible_image
from flamingo_jax.ops.grouped_attention import ImageKeysValues, attend_to_own_image, num_places
from flamingo_jax.parallel.remat import keep_elementwise


@dataclass(frozen=True, kw_only=True)
class GatedCrossAttentionConfig:
    """A block before every n-th decoder layer; OpenFlamingo's sizes.

    Attributes:
      interval: n.
      gate_init: gates start at its tanh. At 0, a pretrained language model starts out unchanged; a
        model that starts from nothing sees its images sooner with open gates.
      feed_forward_everywhere: the block's feed-forward changes text that sees no image, too: how
        OpenFlamingo's released weights were trained. False: such text passes unchanged, so that a
        row of text alone is the plain language model.
      uniform_beyond_images: text after an `<image>` that has no picture attends to every latent of
        its row alike: what the original does, only there to reproduce it. False: such text is an
        error.
    """

    parameters: ClassVar[str] = "cross_attention"  # what their paths begin with
    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    interval: int = 1
    num_heads: int = 8
    head_dim: int = 64
    feed_forward_multiple: int = 4
    gate_init: float = 0.0
    feed_forward_everywhere: bool = False
    uniform_beyond_images: bool = False

    def check(self, decoder: DecoderConfig) -> None:
        """Raises ValueError where the decoder does not fit."""
        if decoder.num_new_tokens != 2:
            raise ValueError(
                f"decoder.num_new_tokens is {decoder.num_new_tokens}, Flamingo needs 2: "
                "<|endofchunk|> and <image>"
            )
        if not 1 <= self.interval <= decoder.num_layers:
            raise ValueError(
                f"fusion.interval is {self.interval}, it must be between 1 and the decoder's "
                f"{decoder.num_layers} layers"
            )

    def heads(self) -> dict[str, int]:
        """Returns what a mesh's `tensor` axis must divide."""
        return {"num_heads": self.num_heads}

    def account(
        self, size: BatchSize, decoder: DecoderConfig, num_vectors: int, vector_width: int
    ) -> Account:
        """`num_vectors`, `vector_width`: of one image."""
        blocks, text = decoder.num_layers // self.interval, size.rows * size.length
        vectors = size.rows * size.images * num_vectors
        places = None if self.uniform_beyond_images else num_places(size.length, size.images)
        return Account(
            part="cross_attention",
            parameters=self.parameters,
            stages=(Stage("text", ""),),
            weights=(
                Weights(r"^(key|value)/kernel$", vectors, "vectors", "text"),
                Weights(r"kernel$", text, "text", "text"),
            ),
            scores=(
                Scores(
                    pattern=r"^out/kernel$",
                    count=size.rows * blocks,
                    num_heads=self.num_heads,
                    head_width=self.head_dim,
                    num_queries=places or size.length * size.images,  # pairs of text and images
                    num_keys=num_vectors,
                    stage="text",
                    keys="vectors",
                    keys_pattern=r"^(key|value)",
                ),
            ),
            layers=(Layers(blocks * decoder.width * text, "text"),),
            reads=(Reads(blocks * vector_width * vectors, "text", "vectors"),),
            new=True,
        )

    def make(
        self, decoder: DecoderConfig, vector_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> "GatedCrossAttention":
        """Returns the stack of blocks that is inserted into the decoder's layers."""
        return stack(
            lambda r: GatedCrossAttention(self, decoder.width, vector_width, dtype=dtype, rngs=r),
            decoder.num_layers // self.interval,
            rngs,
        )

    def see(
        self,
        vectors: Sequence[Float[Array, "_ _ R M"]],
        tokens: Sequence[Int[Array, "_ _"]],
        segments: Sequence[Int[Array, "_ _"]],
        image_token: int,
    ) -> "Images":
        """Returns what the texts of several batches see of their images."""
        visible = [visible_image(t, image_token, s) for t, s in zip(tokens, segments, strict=True)]
        return Images(tuple(vectors), tuple(visible), self.uniform_beyond_images, keep=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Images:
    """Knows what the texts of one or several batches see of the images of their rows.

    Attributes:
      vectors: the connector's, of each batch; empty where keys and values are kept already.
      visible: of each batch, the index of the image that a token sees; −1: none.
      uniform_beyond: see `GatedCrossAttentionConfig.uniform_beyond_images`.
      keep: the keys and values, for text that comes later.
    """

    vectors: tuple[Float[Array, "_ _ R M"], ...]
    visible: tuple[Int[Array, "_ _"], ...]
    uniform_beyond: bool = field(metadata=STATIC)
    keep: bool = field(metadata=STATIC)

    def keys_values(self, key: Linear, value: Linear, head_dim: int) -> list[ImageKeysValues]:
        """Returns keys and values of the images of each batch."""
        flat = [rearrange(x, "b t r m -> b (t r) m") for x in self.vectors]
        layout = TokenLayout.of(flat)
        both = [layout.split(linear(layout.join(flat))) for linear in (key, value)]

        def by_head(y_BSE: Array, x_BTRM: Array) -> Float[Array, "B H T R K"]:
            shape = {"t": x_BTRM.shape[1], "r": x_BTRM.shape[2], "k": head_dim}
            return rearrange(y_BSE, "b (t r) (h k) -> b h t r k", **shape)

        return [(by_head(k, x), by_head(v, x)) for k, v, x in zip(*both, self.vectors, strict=True)]

    def attend(
        self, q_NHK: Float[Array, "N H K"], keys_values: list[ImageKeysValues]
    ) -> tuple[Float[Array, "N HK"], Bool[Array, "N 1"]]:
        """Returns what each token gathers from its image, and whether it has one."""
        layout = TokenLayout.of(self.visible)
        uniform, attended, sees = self.uniform_beyond, [], []
        for q, kv, visible in zip(layout.split(q_NHK), keys_values, self.visible, strict=True):
            y = attend_to_own_image(q, kv, visible, uniform_beyond_images=uniform)
            attended.append(merge_heads(y))
            num_images = kv[0].shape[2]
            sees.append((visible >= 0) & ((visible < num_images) | (uniform and num_images > 0)))
        return keep_elementwise(layout.join(attended)), layout.join(sees)[:, None]


class GatedCrossAttention(nnx.Module):
    """y = x + tanh(a) · attention(norm(x), images); y + tanh(b) · feed_forward(y)."""

    def __init__(
        self,
        config: GatedCrossAttentionConfig,
        width: int,
        vector_width: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inner = config.num_heads * config.head_dim
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.query = Linear(width, inner, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.key = Linear(vector_width, inner, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.value = Linear(vector_width, inner, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.out = Linear(inner, width, bias=False, split="in", dtype=dtype, rngs=rngs)
        self.attention_gate = nnx.Param(jnp.full((), config.gate_init, jnp.float32))
        self.feed_forward = FeedForward(width, config.feed_forward_multiple, dtype=dtype, rngs=rngs)
        self.feed_forward_gate = nnx.Param(jnp.full((), config.gate_init, jnp.float32))
        self.config = config
        self.dtype = dtype

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        images: Images,
        past: list[ImageKeysValues] | None = None,
    ) -> tuple[Float[Array, "N D"], list[ImageKeysValues] | None]:
        """Returns the text with what it saw, and the images' keys and values where they are kept.

        `past`: these, where they are there already.
        """
        kv = past or images.keys_values(self.key, self.value, self.config.head_dim)
        q_NHK = self.query(self.norm(x_ND)).reshape(len(x_ND), -1, self.config.head_dim)
        y_ND, sees_Nx = images.attend(q_NHK, kv)
        gated_ND = self._gate(self.attention_gate) * self.out(y_ND)
        x_ND = x_ND + jnp.where(sees_Nx, gated_ND, 0)
        dense_ND = self.feed_forward(x_ND, scale=self._gate(self.feed_forward_gate))
        if not self.config.feed_forward_everywhere:
            dense_ND = jnp.where(sees_Nx, dense_ND, 0)
        return x_ND + dense_ND, kv if images.keep else None

    def _gate(self, gate: nnx.Param) -> Float[Array, ""]:
        return jnp.tanh(gate[...]).astype(self.dtype)
