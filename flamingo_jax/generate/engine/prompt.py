"""A prompt run once, and text that continues it.

A prompt's layers are scanned, and what they keep comes back stacked. Text that continues it attends
to two parts: the prompt's keys, read only and one per row however many beams or answers continue
it, and its own, which are passed in and returned. Its layers run one by one: inside the loop over
new tokens, a scan would copy every weight out of its stack for every token. Letters as in
`models/layers.py`; W continuations of a row stand in one batch of B · W rows, row by row.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.models.decoder import Decoder
from flamingo_jax.models.fusion.gated_cross_attention import Images
from flamingo_jax.models.text import ContinuedText, TokenLayout, segment_positions
from flamingo_jax.models.transformer import Kept, Layer, in_order
from flamingo_jax.models.vlm import Pictures, VisionLanguageModel
from flamingo_jax.ops.cached_attention import KeysValues

Cache = list[KeysValues]  # of a continuation, layer by layer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompt:
    """Holds all that a continuation needs of what stands before it.

    Attributes:
      kept: what the layers keep of text and images, as `in_order` takes it.
      logits_BV: of the token after the last.
      visible_B: the image that the last token sees.
      num_marks_B: `<image>` tokens so far.
      num_images_B: images of each row that are no padding.
    """

    kept: Any
    tokens_BS: Int[Array, "B S"]
    segments_BS: Int[Array, "B S"]
    logits_BV: Float[Array, "B V"]
    visible_B: Int[Array, "B"]
    num_marks_B: Int[Array, "B"]
    num_images_B: Int[Array, "B"]

    @property
    def num_slots(self) -> int:
        """Counts the images that a row has room for."""
        keys_values = [kept.inserted for kept in self.kept[0] if kept.inserted is not None]
        return keys_values[0][0][0].shape[3]


class PromptLayer(NamedTuple):
    """One layer for text that continues a prompt, and what it kept of the prompt."""

    layer: Layer
    kept: Kept


def empty_cache(decoder: Decoder, rows: int, length: int) -> Cache:
    config = decoder.config
    empty = jnp.zeros((rows, config.kv_heads, length, config.head_width), decoder.dtype)
    return [(empty, empty)] * config.num_layers


def _mask_missing_images(
    visible_BL: Int[Array, "B L"], num_images_B: Int[Array, "B"], num_slots: int
) -> Int[Array, "B L"]:
    """Replaces indices of images that a row does not have by `num_slots`, which no text sees: the
    batch may have a padded slot there."""
    return jnp.where(visible_BL < num_images_B[:, None], visible_BL, num_slots)


def prefill(
    model: VisionLanguageModel,
    pictures: Pictures,
    tokens_BS: Int[Array, "B S"],
    segments_BS: Int[Array, "B S"],
    num_images_B: Int[Array, "B"],
) -> Prompt:
    """Encodes the images and runs the text, padded on the left, once."""
    config = model.config
    vectors = model.image_vectors(pictures)
    images = config.fusion.see([vectors], [tokens_BS], [segments_BS], config.image_token)
    (visible_BS,) = images.visible
    limited_BS = _mask_missing_images(visible_BS, num_images_B, pictures.shape[1])
    images = replace(images, visible=(limited_BS,), keep=True)
    x_ND, text = model.decoder.read([tokens_BS], [segments_BS], keep=True)
    x_ND, kept = model.layers.run(x_ND, text, images)
    (x_BSD,) = text.layout.split(x_ND)
    marks_BS = (tokens_BS == config.image_token) & (segments_BS != 0)
    return Prompt(
        kept,
        tokens_BS,
        segments_BS,
        model.decoder.logits(x_BSD[:, -1:])[:, 0],
        visible_BS[:, -1],
        marks_BS.sum(axis=1),
        num_images_B,
    )


@jax.jit
def last_images_only(prompt: Prompt) -> Prompt:
    """Returns the prompt without the images that no later text can see.

    Enough for continuations that show no further image: an `<image>` in them has none. With one
    image per row, no token has to pick the keys and values of its own.
    """
    sees_B = (prompt.visible_B >= 0) & (prompt.visible_B < prompt.num_images_B)
    index = jnp.where(sees_B, prompt.visible_B, 0)[None, :, None, None, None, None]
    last = lambda x: jnp.take_along_axis(x, index, axis=3)  # noqa: E731
    groups, tail = prompt.kept
    groups = [kept._replace(inserted=jax.tree.map(last, kept.inserted)) for kept in groups]
    return replace(
        prompt,
        kept=(groups, tail),
        visible_B=jnp.where(sees_B, 0, -1),
        num_images_B=sees_B.astype(prompt.num_images_B.dtype),
    )


def unstacked_layers(model: VisionLanguageModel, prompt: Prompt) -> list[PromptLayer]:
    """Returns the layers for text that continues a prompt; take them before a loop over tokens."""
    return list(map(PromptLayer, model.layers.unstacked(), in_order(*prompt.kept)))


def extend(
    model: VisionLanguageModel,
    prompt: Prompt,
    tokens_BWN: Int[Array, "B W N"],
    cache: Cache | None = None,
    *,
    start: int | Int[Array, ""] = 0,
    length: int | None = None,
    layers: list[PromptLayer] | None = None,
) -> tuple[Float[Array, "B W L V"], Cache | None]:
    """Returns logits after `length` tokens of W continuations of each row, from token `start` on.

    Args:
      model: that ran the prompt.
      prompt: what stands before.
      tokens_BWN: the continuations. What stands before `start` must be in the cache; what stands
        after the tokens asked for is not looked at.
      cache: of the continuations, [B · W, G, N, K] each; None: all N tokens are run at once.
      start: first token to run.
      length: number of tokens to run; None: all.
      layers: see `unstacked_layers`; None: taken here.
    """
    total = tokens_BWN.shape[2]
    length = total if length is None else length
    places_N = jnp.arange(total)
    own_seen_LN = places_N <= (start + jnp.arange(length))[:, None]
    return _continue(
        *(model, prompt, tokens_BWN, places_N, own_seen_LN, cache, start),
        unstacked_layers(model, prompt) if layers is None else layers,
    )


def extend_packed(
    model: VisionLanguageModel,
    prompt: Prompt,
    tokens_P: Int[Array, "P"],
    places_P: Int[Array, "P"],
    owners_P: Int[Array, "P"],
) -> Float[Array, "B P V"]:
    """Returns logits after every token of many continuations that stand behind one another.

    Each sees the prompt and itself, and so comes out as `extend` has it, without padding.

    Args:
      model: that ran the prompt.
      prompt: what stands before each continuation.
      tokens_P: the same continuations for every row.
      places_P: of each token in its continuation, from 0.
      owners_P: number of the continuation that a token belongs to.
    """
    tokens_BxP = jnp.broadcast_to(tokens_P, (len(prompt.tokens_BS), 1, len(tokens_P)))
    seen_PP = (owners_P[:, None] == owners_P) & (places_P <= places_P[:, None])
    logits, _ = _continue(
        *(model, prompt, tokens_BxP, places_P, seen_PP, None, 0), unstacked_layers(model, prompt)
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
    layers: list[PromptLayer],
) -> tuple[Float[Array, "B W L V"], Cache | None]:
    """Returns logits after the L tokens from `start` on, which see the prompt and `own_seen`."""
    (batch, width, _), length = tokens_BWN.shape, len(own_seen_LN)

    def tokens_at(y: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(y, start, length, axis=-1)

    positions_BS = segment_positions(prompt.segments_BS)
    first_B1 = positions_BS[:, -1:] + 1
    positions_BL = first_B1 + tokens_at(places_N)
    own_positions_BN = jnp.broadcast_to(first_B1 + places_N, (batch, len(places_N)))
    text = _read_on(
        *(model.decoder, prompt, own_seen_LN, start, width),
        positions_BL,
        jnp.concatenate([positions_BS, own_positions_BN], axis=1),
    )
    tokens_BL = tokens_at(tokens_BWN).reshape(batch * width, length)
    x_BLD = model.decoder.embed(tokens_BL, jnp.repeat(positions_BL, width, axis=0))
    own = [None] * len(layers) if cache is None else cache
    past = [
        Kept((kept.block, own_kv), kept.inserted)
        for (_, kept), own_kv in zip(layers, own, strict=True)
    ]
    x_ND, made = model.layers.run(
        text.layout.join([x_BLD]),
        text,
        _images_on(model, prompt, tokens_BWN, own_seen_LN),
        layers=[layer for layer, _ in layers],
        past=past,
    )
    logits = model.decoder.logits(*text.layout.split(x_ND))
    grown = None if cache is None else [kept.block for kept in made]
    return logits.reshape(batch, width, length, -1), grown


def _read_on(
    decoder: Decoder,
    prompt: Prompt,
    own_seen_LN: Bool[Array, "L N"],
    start: int | Int[Array, ""],
    width: int,
    positions_BL: Int[Array, "B L"],
    key_positions_BM: Int[Array, "B M"],
) -> ContinuedText:
    """Returns who sees whom: each token the prompt's last segment, then `own_seen`."""
    batch, length = positions_BL.shape
    prompt_seen_BS = prompt.segments_BS == prompt.segments_BS[:, -1:]
    mask_BLM = jnp.concatenate(
        [
            jnp.broadcast_to(prompt_seen_BS[:, None], (batch, length, prompt_seen_BS.shape[1])),
            jnp.broadcast_to(own_seen_LN, (batch, *own_seen_LN.shape)),
        ],
        axis=-1,
    )
    bias_BHLM = None
    if (slopes_H := decoder.slopes()) is not None:
        distance_BLM = key_positions_BM[:, None, :] - positions_BL[:, :, None]
        bias_BHLM = slopes_H[None, :, None, None] * distance_BLM[:, None]
    layout = TokenLayout(((batch * width, length),))
    rotary = decoder.rotary(jnp.repeat(positions_BL, width, axis=0))
    return ContinuedText(mask_BLM, bias_BHLM, rotary, start, layout=layout)


def _images_on(
    model: VisionLanguageModel,
    prompt: Prompt,
    tokens_BWN: Int[Array, "B W N"],
    own_seen_LN: Bool[Array, "L N"],
) -> Images:
    """Returns what the continuations see of the images: all of a row are one text to these."""
    is_mark_BWxN = (tokens_BWN == model.config.image_token)[:, :, None]
    marks_BWL = (is_mark_BWxN & own_seen_LN).sum(axis=-1)
    new_BWL = prompt.num_marks_B[:, None, None] + marks_BWL - 1
    visible_BWL = jnp.where(marks_BWL > 0, new_BWL, prompt.visible_B[:, None, None])
    visible_BL = _mask_missing_images(
        visible_BWL.reshape(len(tokens_BWN), -1), prompt.num_images_B, prompt.num_slots
    )
    uniform = model.config.fusion.uniform_beyond_images
    return Images((), (visible_BL,), uniform_beyond=uniform, keep=False)
