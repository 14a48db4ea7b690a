"""Axes of the device mesh, and how the mesh in force splits rows and heads."""

import math

import jax

BATCH_AXES = ("data", "fsdp")  # over which rows of a batch are split
TENSOR_AXIS = "tensor"  # over which heads and hidden units are split


def row_axes(rows: int) -> tuple[str, ...] | None:
    """Axes that split this many rows; None: no mesh is in force, or it does not divide them."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    if not axes or rows % math.prod(mesh.shape[axis] for axis in axes):
        return None
    return axes


def head_axis(heads: int) -> str | None:
    """The axis that splits this many heads, likewise."""
    size = jax.sharding.get_abstract_mesh().shape.get(TENSOR_AXIS)
    return TENSOR_AXIS if size and heads % size == 0 else None
