"""Text rearranged so that a block of it sees one image: cross-attention without masked-out images.

Each text position sees one image at most. With every image masked but one, attention over T images
computes T times what is used. Here positions move to slots,
`size` to a block, in which all see the same image; every image begins a block of its own, so that
at most L / size + T blocks are needed, whatever the text.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SIZE = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageBlocks:
    """N blocks, S = N · size slots.

    Attributes:
      image_BN: the image that a block sees.
      token_BS: the text position in a slot; any, where no text is in it.
      filled_BS: whether text is in a slot.
      slot_BL: where a text position went.
    """

    image_BN: Int[Array, "B N"]
    token_BS: Int[Array, "B S"]
    filled_BS: Bool[Array, "B S"]
    slot_BL: Int[Array, "B L"]


def num_slots(length: int, num_images: int) -> int | None:
    """Slots for any text of this length; None: masking does no more work than these would."""
    size = min(SIZE, length)
    slots = (length + num_images * (size - 1)) // size * size
    return slots if 2 * slots <= length * num_images else None


def image_blocks(visible_BL: Int[Array, "B L"], num_images: int, slots: int) -> ImageBlocks:
    """Blocks for text that sees these images (see `visible_image`), `slots` by `num_slots`.

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
    slot_BL = jnp.sum(jnp.where(is_of_BLT, place_BLT, 0), axis=-1)

    def placed(slot_L: Array, values_L: Array) -> Array:
        return jnp.zeros(slots, values_L.dtype).at[slot_L].set(values_L, unique_indices=True)

    index_BL = jnp.broadcast_to(jnp.arange(length), slot_BL.shape)
    is_after_BNT = jnp.arange(slots // size)[:, None] >= end_block_BT[:, None]
    return ImageBlocks(
        jnp.minimum(is_after_BNT.sum(axis=-1), num_images - 1),
        jax.vmap(placed)(slot_BL, index_BL),
        jax.vmap(placed)(slot_BL, index_BL >= 0),
        slot_BL,
    )


# Each position has one slot, so the gradient of either move is the other: no scatter.
@jax.custom_vjp
def group_queries_by_image(
    x_BLD: Float[Array, "B L D"], blocks: ImageBlocks
) -> Float[Array, "B S D"]:
    return _take(x_BLD, blocks.token_BS)


@jax.custom_vjp
def ungroup_queries(y_BSD: Float[Array, "B S D"], blocks: ImageBlocks) -> Float[Array, "B L D"]:
    return _take(y_BSD, blocks.slot_BL)


def _from_slots_backward(blocks, gradient_BLD):
    moved_BSD = _take(gradient_BLD, blocks.token_BS)
    return jnp.where(blocks.filled_BS[..., None], moved_BSD, 0), None


group_queries_by_image.defvjp(
    lambda x, blocks: (group_queries_by_image(x, blocks), blocks),
    lambda blocks, gradient_BSD: (_take(gradient_BSD, blocks.slot_BL), None),
)
ungroup_queries.defvjp(lambda y, blocks: (ungroup_queries(y, blocks), blocks), _from_slots_backward)


def _take(x_BLD: Array, index_BS: Array) -> Array:
    return jnp.take_along_axis(x_BLD, index_BS[..., None], axis=1, mode="clip")
