"""A prompt run once, and text that continues it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.models.cache import Cache, empty_cache, run_cached
from flamingo_jax.models.cross_attention import MediaKeysValues, visible_image
from flamingo_jax.models.decoder import segment_positions
from flamingo_jax.models.flamingo import Flamingo, Images


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompt:
    """All that a continuation needs of what stands before it."""

    cache: Cache  # of the text: [layers, B, S, G, K]
    media: MediaKeysValues  # of every cross-attention block: [blocks, B, T, R, H, K]
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
    model: Flamingo,
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
    x_BSD, cache = run_cached(
        decoder,
        decoder.embed_at(tokens_BS, segment_positions(segments_BS)),
        decoder.context(segments_BS),
        empty_cache(decoder, *tokens_BS.shape),
        between=(
            (model.cross_attention, media),
            lambda extra, x: extra[0].attend_to(x, extra[1], limited_BS),
        ),
    )
    assert cache is not None
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


def extend(
    model: Flamingo,
    prompt: Prompt,
    tokens_BWN: Int[Array, "B W N"],
    cache: Cache | None = None,
    *,
    start: int | Int[Array, ""] = 0,
    length: int | None = None,
) -> tuple[Float[Array, "B W L V"], Cache | None]:
    """Logits after `length` tokens of W continuations of each row, from token `start` on.

    Args:
      model: a Flamingo.
      prompt: what stands before.
      tokens_BWN: the continuations. What stands before `start` must be in the cache; what stands
        after the tokens asked for is not looked at.
      cache: of the continuations, [layers, B · W, N, G, K]; None: all N tokens are run at once.
      start: first token to run.
      length: number of tokens to run; None: all.
    """
    batch, width, total = tokens_BWN.shape
    length = total if length is None else length
    now_L = start + jnp.arange(length)

    positions_BS = segment_positions(prompt.segments_BS)
    first_B1 = positions_BS[:, -1:] + 1
    own_seen_LN = jnp.arange(total) <= now_L[:, None]
    prompt_seen_BS = prompt.segments_BS == prompt.segments_BS[:, -1:]
    mask_BLM = jnp.concatenate(
        [
            jnp.broadcast_to(prompt_seen_BS[:, None], (batch, length, prompt_seen_BS.shape[1])),
            jnp.broadcast_to(own_seen_LN, (batch, length, total)),
        ],
        axis=-1,
    )
    key_positions_BM = jnp.concatenate([positions_BS, first_B1 + jnp.arange(total)], axis=1)
    decoder = model.decoder
    context = decoder.context_at(first_B1 + now_L, key_positions_BM, mask_BLM[:, None])

    def tokens_at(y_BWN: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(y_BWN, start, length, axis=2)

    marks_BWN = jnp.cumsum(tokens_BWN == model.config.image_token, axis=-1)
    new_BWN = prompt.num_marks_B[:, None, None] + marks_BWN - 1
    visible_BWN = jnp.where(marks_BWN > 0, new_BWN, prompt.visible_B[:, None, None])
    visible_BL = _within(
        tokens_at(visible_BWN).reshape(batch, -1), prompt.num_images_B, prompt.media[0].shape[2]
    )

    def cross(extra, x):
        # All continuations of a row are one text to it: they share the images' keys and values.
        block, media = extra
        y = block.attend_to(x.reshape(batch, -1, x.shape[-1]), media, visible_BL)
        return y.reshape(x.shape)

    positions_BL = jnp.repeat(first_B1 + now_L, width, axis=0)
    x_BLD, cache = run_cached(
        decoder,
        decoder.embed_at(tokens_at(tokens_BWN).reshape(batch * width, length), positions_BL),
        context,
        cache,
        start=start,
        prompt=prompt.cache,
        between=((model.cross_attention, prompt.media), cross),
    )
    logits = decoder.logits(x_BLD)
    return logits.reshape(batch, width, length, -1), cache
