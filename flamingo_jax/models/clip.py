"""CLIP (arXiv 2103.00020): the two towers that embed images and texts in one space."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flamingo_jax.models.layers import LayerNorm, Linear, stack
from flamingo_jax.models.text import Text, TokenLayout
from flamingo_jax.models.transformer import Block, BlockConfig, LayerStack, locate
from flamingo_jax.models.vision.clip import ClipVisionConfig, VisionTransformer
from flamingo_jax.ops.attention import CausalRows


@dataclass(frozen=True, kw_only=True)
class TextConfig(BlockConfig):
    """CLIP's text tower. `activation`: "quick_gelu" for OpenAI's weights, "gelu" for most others.

    Attributes:
      max_length: learned positions, and the length of every text.
      projection_width: of the embedding shared with the vision tower.
      end_token: the text is read at the first one; None: at its highest id, as OpenAI and OpenCLIP
        do.
    """

    vocab_size: int
    max_length: int = 77
    projection_width: int
    end_token: int | None = None


@dataclass(frozen=True)
class ClipConfig:
    """Two towers with projections of one width."""

    vision: ClipVisionConfig
    text: TextConfig

    def __post_init__(self) -> None:
        widths = self.vision.projection_width, self.text.projection_width
        if widths[0] != widths[1]:
            raise ValueError(f"the towers' projections are {widths[0]} and {widths[1]} wide")

    def locate(self, path: str) -> tuple[str, range | None]:
        """Returns what `ModelConfig.locate` does."""
        tower, _, own = path.partition("/")
        own, numbers = locate(own, getattr(self, tower).num_layers)
        return f"{tower}/{own}", numbers


class TextTransformer(nnx.Module):
    """Tokens, learned positions, causal pre-norm layers, and the end token's features projected."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.width

        def table(rows: int) -> nnx.Param:
            return nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (rows, width)))

        self.token_embedding = table(config.vocab_size)
        self.position_embedding = table(config.max_length)
        self.layers = stack(lambda r: Block(config, dtype=dtype, rngs=r), config.num_layers, rngs)
        self.post_norm = LayerNorm(width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.projection = Linear(width, config.projection_width, bias=False, dtype=dtype, rngs=rngs)
        self.end_token = config.end_token
        self.dtype = dtype

    def __call__(self, tokens_BL: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """Returns CLIP's text embedding, not normalised to unit length. What follows the end token
        is not seen: attention is causal."""
        x_BLD = self.token_embedding[...][tokens_BL] + self.position_embedding[...]
        ones_BL, layout = jnp.ones_like(tokens_BL), TokenLayout.of([tokens_BL])
        rows = CausalRows(ones_BL, ones_BL)
        text = Text((rows,), (None,), layout=layout, choice="auto", keep=False)
        x_ND, _ = LayerStack([self.layers]).run(layout.join([x_BLD.astype(self.dtype)]), text)
        (x_BLD,) = layout.split(x_ND)
        ends_BL = tokens_BL if self.end_token is None else tokens_BL == self.end_token
        x_BD = x_BLD[jnp.arange(len(x_BLD)), ends_BL.argmax(axis=1)]
        return self.projection(self.post_norm(x_BD))


class Clip(nnx.Module):
    """Both towers."""

    def __init__(self, config: ClipConfig, rngs: nnx.Rngs, *, dtype: DTypeLike = jnp.float32):
        self.vision = VisionTransformer(config.vision, dtype=dtype, rngs=rngs)
        self.text = TextTransformer(config.text, dtype=dtype, rngs=rngs)
