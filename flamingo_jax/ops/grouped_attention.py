"""Attention of text to the latents of its own image, without the images that it does not see.

Each text position sees one image at most. With every image masked but one, attention over T images
computes T times what is used. Here queries move to blocks of `SIZE`, in which all see the same
image; every image begins a block of its own, so that at most L / SIZE + T blocks are needed,
whatever the text. Letters as in `models/layers.py`; N blocks, S = N · SIZE places in them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.ops.attention import MASKED, softmax_attention

SIZE = 32
# Head by head, as attention reads them: decoding would turn them anew for every token.
ImageKeysValues = tuple[Float[Array, "_ H _ R _"], Float[Array, "_ H _ R _"]]  # of T images


def attend_to_own_image(
    q_BLHK: Float[Array, "B L H K"],
    images: ImageKeysValues,
    visible_BL: Int[Array, "B L"],
    *,
    uniform_beyond_images: bool = False,
) -> Float[Array, "B L H K"]:
    """Returns softmax(q·k / √K) · v over the latents of the image that each position sees.

    Args:
      q_BLHK: of the text.
      images: keys and values of T images' R latents each.
      visible_BL: index of the image; a position with none (−1, or ≥ T) gives anything finite.
      uniform_beyond_images: a position with an index ≥ T attends to all latents of its row alike.
    """
    num_images = images[0].shape[2]
    if not num_images:
        return jnp.zeros_like(q_BLHK)
    places = num_places(visible_BL.shape[1], num_images)
    if places is None or uniform_beyond_images:
        return masked_image_attention(q_BLHK, images, visible_BL)
    blocks = image_blocks(visible_BL, num_images, places)
    k_BHNRK, v_BHNRK = (
        jnp.take_along_axis(y, blocks.image_BN[:, None, :, None, None], 2, mode="clip")
        for y in images
    )
    shape = {"n": blocks.image_BN.shape[1], "k": q_BLHK.shape[-1]}
    q_BSD = group_queries_by_image(rearrange(q_BLHK, "b l h k -> b l (h k)"), blocks)
    q_BHNCK = rearrange(q_BSD, "b (n c) (h k) -> b h n c k", **shape)
    y_BHNCK = softmax_attention(q_BHNCK, k_BHNRK, v_BHNRK)
    y_BLD = ungroup_queries(rearrange(y_BHNCK, "b h n c k -> b (n c) (h k)"), blocks)
    return y_BLD.reshape(q_BLHK.shape)


def masked_image_attention(
    q_BLHK: Float[Array, "B L H K"], images: ImageKeysValues, visible_BL: Int[Array, "B L"]
) -> Float[Array, "B L H K"]:
    """Computes `attend_to_own_image` over the latents of all images, with a mask."""
    num_images, num_latents = images[0].shape[2:4]
    k_BHSK, v_BHSK = (rearrange(y, "b h t r k -> b h (t r) k") for y in images)
    image_S = jnp.repeat(jnp.arange(num_images), num_latents)
    # Attending to all where nothing is seen keeps the softmax finite.
    all_BLx = ((visible_BL < 0) | (visible_BL >= num_images))[..., None]
    mask_BLS = (visible_BL[..., None] == image_S) | all_BLx
    # A query of zeros scores all keys alike.
    beyond_BLxx = (visible_BL >= num_images)[..., None, None]
    q_BHLK = jnp.where(beyond_BLxx, 0, q_BLHK).swapaxes(1, 2)
    bias_BxLS = jnp.where(mask_BLS[:, None], 0.0, MASKED)
    return softmax_attention(q_BHLK, k_BHSK, v_BHSK, (bias_BxLS,)).swapaxes(1, 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageBlocks:
    """Where each query went.

    Attributes:
      image_BN: the image that a block sees.
      token_BS: the text position in a place; any, where no text is in it.
      filled_BS: whether text is in a place.
      place_BL: the place of a text position.
    """

    image_BN: Int[Array, "B N"]
    token_BS: Int[Array, "B S"]
    filled_BS: Bool[Array, "B S"]
    place_BL: Int[Array, "B L"]


def num_places(length: int, num_images: int) -> int | None:
    """Returns places enough for any text of this length; None: masking is no more work."""
    size = min(SIZE, length)
    places = (length + num_images * (size - 1)) // size * size
    return places if 2 * places <= length * num_images else None


def image_blocks(visible_BL: Int[Array, "B L"], num_images: int, places: int) -> ImageBlocks:
    """Returns blocks for text that sees these images; `places`: see `num_places`.

    Text that sees none stands with the first image.
    """
    length = visible_BL.shape[1]
    size = min(SIZE, length)
    image_BL = jnp.clip(visible_BL, 0, num_images - 1)
    is_of_BLT = image_BL[..., None] == jnp.arange(num_images)
    blocks_BT = -(-is_of_BLT.sum(axis=1) // size)
    end_block_BT = jnp.cumsum(blocks_BT, axis=1)
    # Slots of an image are filled in the order of the text.
    place_BLT = (end_block_BT - blocks_BT)[:, None] * size + jnp.cumsum(is_of_BLT, axis=1) - 1
    place_BL = jnp.sum(jnp.where(is_of_BLT, place_BLT, 0), axis=-1)

    def placed(place_L: Array, values_L: Array) -> Array:
        return jnp.zeros(places, values_L.dtype).at[place_L].set(values_L, unique_indices=True)

    index_BL = jnp.broadcast_to(jnp.arange(length), place_BL.shape)
    is_after_BNT = jnp.arange(places // size)[:, None] >= end_block_BT[:, None]
    return ImageBlocks(
        jnp.minimum(is_after_BNT.sum(axis=-1), num_images - 1),
        jax.vmap(placed)(place_BL, index_BL),
        jax.vmap(placed)(place_BL, index_BL >= 0),
        place_BL,
    )


# Each position has one place, so the gradient of either move is the other: no scatter.
@jax.custom_vjp
def group_queries_by_image(
    x_BLD: Float[Array, "B L D"], blocks: ImageBlocks
) -> Float[Array, "B S D"]:
    return _take(x_BLD, blocks.token_BS)


@jax.custom_vjp
def ungroup_queries(y_BSD: Float[Array, "B S D"], blocks: ImageBlocks) -> Float[Array, "B L D"]:
    return _take(y_BSD, blocks.place_BL)


def _ungroup_backward(blocks, gradient_BLD):
    moved_BSD = _take(gradient_BLD, blocks.token_BS)
    return jnp.where(blocks.filled_BS[..., None], moved_BSD, 0), None


group_queries_by_image.defvjp(
    lambda x, blocks: (group_queries_by_image(x, blocks), blocks),
    lambda blocks, gradient_BSD: (_take(gradient_BSD, blocks.place_BL), None),
)
ungroup_queries.defvjp(lambda y, blocks: (ungroup_queries(y, blocks), blocks), _ungroup_backward)


def _take(x_BLD: Array, index_BS: Array) -> Array:
    return jnp.take_along_axis(x_BLD, index_BS[..., None], axis=1, mode="clip")
