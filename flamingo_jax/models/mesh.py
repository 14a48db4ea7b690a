"""Axes of the device mesh, and how the mesh in force splits rows and heads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

BATCH_AXES = ("data", "fsdp")  # over which rows of a batch are split
TENSOR_AXIS = "tensor"  # over which heads and hidden units are split


def row_axes(rows: int) -> tuple[str, ...] | None:
    """Axes that split this many rows; None: no mesh is in force, or it does not divide them."""
    axes, count = _row_shards()
    return None if not axes or rows % count else axes


def rows_per_device(rows: int) -> int:
    """How many of so many rows one device of the mesh in force holds."""
    return math.ceil(rows / _row_shards()[1])


def join_rows(parts: Sequence[Shaped[Array, "_ ..."]]) -> Shaped[Array, "N ..."]:
    """The rows of several arrays as those of one, so that a weight multiplies all of them at once.

    Each device's rows of all arrays stand next to one another: nothing moves between devices.
    """
    if len(parts) == 1:
        return parts[0]
    counts, shape = [len(part) for part in parts], parts[0].shape[1:]
    shards = _shards_of(counts)
    own = [part.reshape(shards, len(part) // shards, *shape) for part in parts]
    return jnp.concatenate(own, axis=1).reshape(sum(counts), *shape)


def split_rows(
    joined: Shaped[Array, "N ..."], counts: Sequence[int]
) -> list[Shaped[Array, "_ ..."]]:
    """`joined` taken apart again. `counts`: the rows that each part had."""
    if len(counts) == 1:
        return [joined]
    shards = _shards_of(counts)
    shape = joined.shape[1:]
    own = joined.reshape(shards, len(joined) // shards, *shape)
    ends = list(accumulate(count // shards for count in counts))
    pieces = jnp.split(own, ends[:-1], axis=1)
    return [x.reshape(count, *shape) for x, count in zip(pieces, counts, strict=True)]


@dataclass(frozen=True)
class Texts:
    """Shapes (B, L) of several texts whose tokens stand in one array (N, D), for all that looks at
    each token alone; see `join_rows`."""

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, xs: Sequence[Shaped[Array, "_ _ ..."]]) -> "Texts":
        return cls(tuple((x.shape[0], x.shape[1]) for x in xs))

    def join(self, xs: Sequence[Shaped[Array, "_ _ ..."]]) -> Shaped[Array, "N ..."]:
        return join_rows([x.reshape(-1, *x.shape[2:]) for x in xs])

    def split(self, x_ND: Shaped[Array, "N ..."]) -> list[Shaped[Array, "_ _ ..."]]:
        parts = split_rows(x_ND, [batch * length for batch, length in self.shapes])
        return [
            x.reshape(*shape, *x.shape[1:]) for x, shape in zip(parts, self.shapes, strict=True)
        ]


def _shards_of(counts: Sequence[int]) -> int:
    """Into how many parts the mesh in force splits all of these rows; 1: not all of them."""
    count = _row_shards()[1]
    return 1 if any(rows % count for rows in counts) else count


def _row_shards() -> tuple[tuple[str, ...], int]:
    """Axes of the mesh in force that split rows, and into how many parts."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    return axes, math.prod(mesh.shape[axis] for axis in axes)


def head_axis(heads: int) -> str | None:
    """The axis that splits this many heads, likewise."""
    size = jax.sharding.get_abstract_mesh().shape.get(TENSOR_AXIS)
    return TENSOR_AXIS if size and heads % size == 0 else None
