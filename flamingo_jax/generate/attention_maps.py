"""Where in its picture the model looks while it reads a text.

A text token attends to the latents of its picture; the latents attended to the picture's patches.
The product of both says how much of the token's look falls on which patch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from flamingo_jax.errors import UserError
from flamingo_jax.generate.model import Inference
from flamingo_jax.models.connectors.perceiver import PerceiverResampler
from flamingo_jax.models.fusion.gated_cross_attention import GatedCrossAttention, Images
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.models.transformer import Layer
from flamingo_jax.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class AttentionMaps:
    """Holds the maps of one prompt.

    C cross-attention blocks, H heads, h × w patches of each of F frames.

    Attributes:
      tokens: the prompt's tokens as text.
      visible_L: index of the picture each token sees; −1: none, and its maps are zero.
      latents_CHLR: share of each token's look that falls on each latent of its picture.
      patches_TRFhw: share of each latent's look that falls on each patch, mean of the resampler's
        layers and heads. What it attends to of the latents themselves is left out.
    """

    tokens: tuple[str, ...]
    visible_L: Int[np.ndarray, "L"]
    latents_CHLR: Float[np.ndarray, "C H L R"]
    patches_TRFhw: Float[np.ndarray, "T R F h w"]

    def of_token(self, index: int, block: int | None = None) -> Float[np.ndarray, "F h w"]:
        """Shares of a token's look on the patches of its picture, which add up to 1: the mean of
        all heads, and of all blocks or of one.

        Raises:
          UserError: a token that sees no picture.
        """
        picture = int(self.visible_L[index])
        if picture < 0:
            raise UserError(
                f"token {index} ({self.tokens[index]!r}) sees no picture: choose one that stands "
                "after a picture"
            )
        blocks_CHR = self.latents_CHLR[:, :, index]
        chosen_HR = blocks_CHR.mean(axis=0) if block is None else blocks_CHR[block]
        return np.einsum("r,rfhw->fhw", chosen_HR.mean(axis=0), self.patches_TRFhw[picture])


def attention_maps(flamingo: Inference, query: Any) -> AttentionMaps:
    """The attention maps of one prompt, as `Inference.generate` takes it.

    Raises:
      UserError: a prompt that is wrong, or has no picture.
    """
    prompt = flamingo.read(query)
    if not len(prompt.media_TFHWC):
        raise UserError("the prompt has no picture to look at: give it one")
    latents, patches, visible = _maps(
        flamingo.graph, flamingo.params, prompt.media_TFHWC[None], prompt.tokens_L[None]
    )
    num_frames, side = prompt.media_TFHWC.shape[1], flamingo.config.encoder
    height = side.image_size // side.patch_size
    tokenizer = flamingo.processor.tokenizer
    return AttentionMaps(
        tuple(tokenizer.decode([token]) for token in prompt.tokens_L),
        np.asarray(visible[0]),
        np.asarray(latents[:, 0], np.float32),
        rearrange(
            np.asarray(patches, np.float32), "t r (f h w) -> t r f h w", f=num_frames, h=height
        ),
    )


@partial(jax.jit, static_argnums=0)
def _maps(
    graph: ModelGraph, params: Params, pictures: Any, tokens_BL: Int[Array, "B L"]
) -> tuple[Float[Array, "C B H L R"], Float[Array, "T R P"], Int[Array, "B L"]]:
    model: VisionLanguageModel = graph.merge(params)
    features = model.encode([pictures])
    x_ND, text, images = model.read(
        model.connect(features), [tokens_BL], [jnp.ones_like(tokens_BL)]
    )
    looks: list[Array] = []

    def watch(layer: Layer, x_ND: Array) -> None:
        if layer.inserted is not None:
            (x_BLD,) = text.layout.split(x_ND)
            looks.append(_latent_weights(layer.inserted, x_BLD, images))

    model.layers.run(x_ND, text, images, layers=model.layers.unstacked(), watch=watch)
    patches = _patch_weights(model.connector, model.connector.inputs(features[0]))
    return jnp.stack(looks), patches, images.visible[0]


def _latent_weights(
    block: GatedCrossAttention, x_BLD: Float[Array, "B L D"], images: Images
) -> Float[Array, "B H L R"]:
    """Returns the softmax inside `GatedCrossAttention`, over the latents of each token's image."""
    head_dim, (visible_BL,) = block.config.head_dim, images.visible
    ((keys_BHTRK, _),) = images.keys_values(block.key, block.value, head_dim)
    queries = block.query(block.norm(x_BLD))
    q_BLHK = rearrange(queries, "b l (h k) -> b l h k", k=head_dim)
    index = jnp.clip(visible_BL, 0)[:, None, :, None, None]
    k_BHLRK = jnp.take_along_axis(keys_BHTRK, index, axis=2)
    logits = jnp.einsum("blhk,bhlrk->bhlr", q_BLHK, k_BHLRK, preferred_element_type=jnp.float32)
    weights_BHLR = jax.nn.softmax(logits / head_dim**0.5, axis=-1)
    return jnp.where((visible_BL >= 0)[:, None, :, None], weights_BHLR, 0)


def _patch_weights(
    resampler: PerceiverResampler, x_BPD: Float[Array, "B P D"]
) -> Float[Array, "B R P"]:
    """Returns the softmax inside each `ResamplerLayer`, cut to the patches; mean of layers and
    heads."""
    z_ND, patches = resampler.start(x_BPD)
    num_patches, weights = x_BPD.shape[1], []

    def watch(layer: Layer, z_ND: Array) -> None:
        q_BRHK, k_BSHK, _ = layer.block.project(z_ND, patches)
        logits = jnp.einsum("brhk,bshk->bhrs", q_BRHK, k_BSHK, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(logits / q_BRHK.shape[-1] ** 0.5, axis=-1)
        weights.append(shares[..., :num_patches].mean(axis=1))

    resampler.stack.run(z_ND, patches, layers=resampler.stack.unstacked(), watch=watch)
    mean_BRP = jnp.stack(weights).mean(axis=0)
    return mean_BRP / mean_BRP.sum(axis=-1, keepdims=True)
