"""A prompt run once, and text that continues it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.generate.engine.cache import (
    Cache,
    Layer,
    PromptCache,
    run_continuation,
    run_prompt,
    unstack,
)
from flamingo_jax.models.decoder import segment_positions
from flamingo_jax.models.fusion.cross_attention import MediaKeysValues, visible_image
from flamingo_jax.models.vlm import Images, VisionLanguageModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompt:
    """All that a continuation needs of what stands before it."""

    cache: PromptCache  # of the text: [layers, B, G, S, K]
    media: MediaKeysValues  # of every cross-attention block: [blocks, B, H, T, R, K]
    tokens_BS: Int[Array, "B S"]
    segments_BS: Int[Array, "B S"]
    logits_BV: Float[Array, "B V"]  # of the token after the last
    visible_B: Int[Array, "B"]  # image that the last token sees
    num_marks_B: Int[Array, "B"]  # <image> tokens so far
    num_images_B: Int[Array, "B"]  # images of each row that are no padding


def _within(visible_BL: Array, num_images_B: Array, num_slots: int) -> Array:
    """A mark beyond its row's images has none, though the batch may have a padded slot there."""
    return jnp.where(visible_BL < num_images_B[:, None], visible_BL, num_slots)


def prefill(
    model: VisionLanguageModel,
    images: Images,
    tokens_BS: Int[Array, "B S"],
    segments_BS: Int[Array, "B S"],
    num_images_B: Int[Array, "B"],
) -> Prompt:
    """Encodes the images and runs the text, padded on the left, once."""
    media_BTRD = model.encode_images(images)
    media = jax.vmap(lambda block: block.keys_values(media_BTRD))(model.cross_attention)
    marks_BS = (tokens_BS == model.config.image_token) & (segments_BS != 0)
    visible_BS = visible_image(tokens_BS, model.config.image_token, segments_BS)
    limited_BS = _within(visible_BS, num_images_B, images.shape[1])
    decoder = model.decoder
    x_BSD, cache = run_prompt(
        decoder,
        decoder.embed_at(tokens_BS, segment_positions(segments_BS)),
        decoder.context(segments_BS),
        between=(
            (model.cross_attention, media),
            lambda extra, x: extra[0].attend_to(x, extra[1], limited_BS),
        ),
    )
    return Prompt(
        cache,
        media,
        tokens_BS,
        segments_BS,
        decoder.logits(x_BSD[:, -1:])[:, 0],
        visible_BS[:, -1],
        marks_BS.sum(axis=1),
        num_images_B,
    )


def last_images_only(prompt: Prompt) -> Prompt:
    """The prompt without the images that no later text can see.

    Enough for continuations that show no further image: an `<image>` in them has none. With one
    image per row, no token has to pick the keys and values of its own.
    """
    media, visible_B, num_images_B = _last_images(
        prompt.media, prompt.visible_B, prompt.num_images_B
    )
    return replace(prompt, media=media, visible_B=visible_B, num_images_B=num_images_B)


@jax.jit
def _last_images(
    media: MediaKeysValues, visible_B: Int[Array, "B"], num_images_B: Int[Array, "B"]
) -> tuple[MediaKeysValues, Int[Array, "B"], Int[Array, "B"]]:
    sees_B = (visible_B >= 0) & (visible_B < num_images_B)
    index = jnp.where(sees_B, visible_B, 0)[None, :, None, None, None, None]
    k, v = (jnp.take_along_axis(x, index, axis=3) for x in media)
    return (k, v), jnp.where(sees_B, 0, -1), sees_B.astype(num_images_B.dtype)


def layers_after(model: VisionLanguageModel, prompt: Prompt) -> list[Layer]:
    """The layers for text that continues a prompt. Take them before a loop over its tokens: taken
    inside, their weights are copied from their stacks for every token."""
    return unstack(model.decoder, (model.cross_attention, prompt.media), prompt.cache)


def extend(
    model: VisionLanguageModel,
    prompt: Prompt,
    tokens_BWN: Int[Array, "B W N"],
    cache: Cache | None = None,
    *,
    start: int | Int[Array, ""] = 0,
    length: int | None = None,
    layers: list[Layer] | None = None,
) -> tuple[Float[Array, "B W L V"], Cache | None]:
    """Logits after `length` tokens of W continuations of each row, from token `start` on.

    Args:
      model: a Flamingo.
      prompt: what stands before.
      tokens_BWN: the continuations. What stands before `start` must be in the cache; what stands
        after the tokens asked for is not looked at.
      cache: of the continuations, [B · W, G, N, K] each; None: all N tokens are run at once.
      start: first token to run.
      length: number of tokens to run; None: all.
      layers: see `layers_after`; None: taken here.
    """
    total = tokens_BWN.shape[2]
    length = total if length is None else length
    places_N = jnp.arange(total)
    own_seen_LN = places_N <= (start + jnp.arange(length))[:, None]
    return _continue(
        *(model, prompt, tokens_BWN, places_N, own_seen_LN, cache, start),
        layers_after(model, prompt) if layers is None else layers,
    )


def extend_packed(
    model: VisionLanguageModel,
    prompt: Prompt,
    tokens_P: Int[Array, "P"],
    places_P: Int[Array, "P"],
    owners_P: Int[Array, "P"],
) -> Float[Array, "B P V"]:
    """Logits after every token of many continuations that stand behind one another.

    Each sees the prompt and itself, and so comes out as `extend` has it, without padding.

    Args:
      model: a Flamingo.
      prompt: what stands before each continuation.
      tokens_P: the same continuations for every row.
      places_P: of each token in its continuation, from 0.
      owners_P: number of the continuation that a token belongs to.
    """
    tokens_BxP = jnp.broadcast_to(tokens_P, (len(prompt.tokens_BS), 1, len(tokens_P)))
    seen_PP = (owners_P[:, None] == owners_P) & (places_P <= places_P[:, None])
    logits, _ = _continue(
        *(model, prompt, tokens_BxP, places_P, seen_PP, None, 0), layers_after(model, prompt)
    )
    return logits[:, 0]


def _continue(
    model: VisionLanguageModel,
    prompt: Prompt,
    tokens_BWN: Int[Array, "B W N"],
    places_N: Int[Array, "N"],
    own_seen_LN: Bool[Array, "L N"],
    cache: Cache | None,
    start: int | Int[Array, ""],
    layers: list[Layer],
) -> tuple[Float[Array, "B W L V"], Cache | None]:
    """Logits after the L tokens from `start` on, which see the prompt and `own_seen_LN`."""
    (batch, width, _), length = tokens_BWN.shape, len(own_seen_LN)

    def tokens_at(y: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(y, start, length, axis=-1)

    positions_BS = segment_positions(prompt.segments_BS)
    first_B1 = positions_BS[:, -1:] + 1
    positions_BL = first_B1 + tokens_at(places_N)
    prompt_seen_BS = prompt.segments_BS == prompt.segments_BS[:, -1:]
    mask_BLM = jnp.concatenate(
        [
            jnp.broadcast_to(prompt_seen_BS[:, None], (batch, length, prompt_seen_BS.shape[1])),
            jnp.broadcast_to(own_seen_LN, (batch, *own_seen_LN.shape)),
        ],
        axis=-1,
    )
    key_positions_BM = jnp.concatenate([positions_BS, first_B1 + places_N], axis=1)
    decoder = model.decoder
    context = decoder.context_at(positions_BL, key_positions_BM, mask_BLM[:, None])

    is_mark_BWxN = (tokens_BWN == model.config.image_token)[:, :, None]
    marks_BWL = (is_mark_BWxN & own_seen_LN).sum(axis=-1)
    new_BWL = prompt.num_marks_B[:, None, None] + marks_BWL - 1
    visible_BWL = jnp.where(marks_BWL > 0, new_BWL, prompt.visible_B[:, None, None])
    visible_BL = _within(
        visible_BWL.reshape(batch, -1), prompt.num_images_B, prompt.media[0].shape[3]
    )

    def cross(extra, x):
        # All continuations of a row are one text to it: they share the images' keys and values.
        block, media = extra
        y = block.attend_to(x.reshape(batch, -1, x.shape[-1]), media, visible_BL)
        return y.reshape(x.shape)

    tokens_BL = tokens_at(tokens_BWN).reshape(batch * width, length)
    x_BLD, cache = run_continuation(
        layers,
        decoder.embed_at(tokens_BL, jnp.repeat(positions_BL, width, axis=0)),
        context,
        cache,
        start=start,
        between=cross,
    )
    logits = decoder.logits(x_BLD)
    return logits.reshape(batch, width, length, -1), cache
