"""Where in its picture the model looks while it reads a text.

A text token attends to the latents of its picture; the latents attended to the picture's patches.
The product of both says how much of the token's look falls on which patch.
"""

from collections.abc import Callable
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
from flamingo_jax.models.block import standardize
from flamingo_jax.models.connectors.perceiver import PerceiverResampler
from flamingo_jax.models.fusion.cross_attention import GatedCrossAttention, visible_image
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class AttentionMaps:
    """Of one prompt. C cross-attention blocks, H heads, h × w patches of each of F frames.

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
    graph: ModelGraph, params: Params, images: Any, tokens_BL: Int[Array, "B L"]
) -> tuple[Float[Array, "C B H L R"], Float[Array, "T R N"], Int[Array, "B L"]]:
    model: VisionLanguageModel = graph.merge(params)
    batch, num_images = images.shape[:2]
    vision = model.vision(rearrange(images, "b t f h w c -> (b t f) h w c"))
    patches = rearrange(vision, "(b t f) n d -> b t f n d", b=batch, t=num_images)
    segments_BL = jnp.ones_like(tokens_BL)
    visible_BL = visible_image(tokens_BL, model.config.image_token, segments_BL)
    looks = []

    def look(block: GatedCrossAttention, x: Array) -> Array:
        media_BTRD = model.resampler(patches)
        looks.append(_latent_weights(block, x, media_BTRD, visible_BL))
        return block(x, media_BTRD, visible_BL)

    _run_layers(model, tokens_BL, segments_BL, look)
    return jnp.stack(looks), _patch_weights(model.resampler, patches), visible_BL


def _run_layers(
    model: VisionLanguageModel,
    tokens_BL: Int[Array, "B L"],
    segments_BL: Int[Array, "B L"],
    cross: Callable[[GatedCrossAttention, Array], Array],
) -> None:
    """`Decoder.run_layers` written out, for what a scan does not let out."""
    decoder = model.decoder
    x, context = decoder.embed(tokens_BL, segments_BL), decoder.context(segments_BL)
    for group in range(decoder.config.num_layers // model.config.fusion.interval):
        *before, last = (_layer(stack, group) for stack in decoder.layers)
        for block in before:
            x = block(x, context)
        x = last(cross(_layer(model.cross_attention, group), x), context)


def _layer(stack: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stack)


def _latent_weights(
    block: GatedCrossAttention,
    x_BLD: Float[Array, "B L D"],
    media_BTRD: Float[Array, "B T R D"],
    visible_BL: Int[Array, "B L"],
) -> Float[Array, "B H L R"]:
    """The softmax inside `GatedCrossAttention`, over the latents of each token's picture."""
    keys_BHTRK = block.keys_values(media_BTRD)[0]
    queries = block.query(block.norm(x_BLD))
    q_BLHK = rearrange(queries, "b l (h k) -> b l h k", k=keys_BHTRK.shape[-1])
    index = jnp.clip(visible_BL, 0)[:, None, :, None, None]
    k_BHLRK = jnp.take_along_axis(keys_BHTRK, index, axis=2)
    logits = jnp.einsum("blhk,bhlrk->bhlr", q_BLHK, k_BHLRK, preferred_element_type=jnp.float32)
    weights_BHLR = jax.nn.softmax(logits / keys_BHTRK.shape[-1] ** 0.5, axis=-1)
    return jnp.where((visible_BL >= 0)[:, None, :, None], weights_BHLR, 0)


def _patch_weights(
    resampler: PerceiverResampler, x_BTFND: Float[Array, "B T F N D"]
) -> Float[Array, "BT R FN"]:
    """The softmax inside each `ResamplerLayer`, cut to the patches; mean of layers and heads."""
    media_BND = standardize(resampler.flat_media(x_BTFND), dtype=resampler.dtype)
    latents_RD = resampler.latents[...].astype(resampler.dtype)
    latents_BRD = jnp.broadcast_to(latents_RD, (len(media_BND), *latents_RD.shape))

    def body(latents_BRD: Array, layer: Any) -> tuple[Array, Array]:
        q_BRHK, k_BSHK, _ = layer.heads(latents_BRD, media_BND)
        logits = jnp.einsum("brhk,bshk->bhrs", q_BRHK, k_BSHK, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / layer.head_dim**0.5, axis=-1)
        return layer(latents_BRD, media_BND), weights[..., : media_BND.shape[1]].mean(axis=1)

    _, weights_NBRS = jax.lax.scan(body, latents_BRD, resampler.layers)
    mean_BRS = weights_NBRS.mean(axis=0)
    return mean_BRS / mean_BRS.sum(axis=-1, keepdims=True)
