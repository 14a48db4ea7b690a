"""The one rule that says where every array lies on the mesh."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.parallel.mesh import BATCH_AXES, TENSOR_AXIS, row_shards

SMALLEST_SHARDED = 2**14  # elements of a layer; smaller arrays cost more to gather than to keep


@dataclass(frozen=True)
class ParamFacts:
    """Tells others what they need to know of a parameter; it is said where that is made.

    Attributes:
      stacked: its first axis is the layer.
      split: the axis that lies over `tensor`, if any. By Megatron's rule (arXiv 1909.08053), the
        first matmuls of a layer are split by their outputs (heads, hidden units), its last by their
        inputs, so that a layer sums over devices once per sub-layer.
      contracted: the axis that a matmul sums over, of a matrix; None: it is none.
    """

    stacked: bool = False
    split: int | None = None
    contracted: int | None = None


def parameter_spec(facts: ParamFacts, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns where a parameter lies between uses: as it is computed with, and split over `fsdp`
    besides, along the first axis after the layer axis that divides."""
    axes = _tensor_axes(facts, shape, mesh)
    size = mesh.shape["fsdp"]
    first = int(facts.stacked)
    if size > 1 and math.prod(shape[first:]) >= SMALLEST_SHARDED:
        for axis in range(first, len(shape)):
            if shape[axis] % (size * math.prod(mesh.shape[a] for a in axes[axis])) == 0:
                axes[axis] = (*axes[axis], "fsdp")
                break
    return _spec(axes)


def gathered_spec(facts: ParamFacts, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns where a parameter lies while its layer computes: split over `tensor` only."""
    return _spec(_tensor_axes(facts, shape, mesh))


def _tensor_axes(facts: ParamFacts, shape: tuple[int, ...], mesh: Mesh) -> list[tuple[str, ...]]:
    axes: list[tuple[str, ...]] = [()] * len(shape)
    size, axis = mesh.shape[TENSOR_AXIS], facts.split
    if size > 1 and axis is not None and shape[axis] % size == 0:
        axes[axis] = (TENSOR_AXIS,)
    return axes


def _spec(axes: list[tuple[str, ...]]) -> PartitionSpec:
    entries = [a[0] if len(a) == 1 else a or None for a in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def tree_shardings(tree: Any, by_path: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Returns the sharding of each leaf of a tree whose innermost dict keys are parameter paths.

    Parameters and optimizer state are such trees; other leaves (counters) are replicated.
    """

    def sharding(path, leaf):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        return by_path[keys[-1]] if keys else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def host_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch's rows this process reads, and into how many the processes cut it.

    Processes whose devices hold the same rows (`tensor` across processes) read the same part.
    """
    rows_of: dict[int, set[int]] = {}
    places: Any = batch_sharding(mesh).devices_indices_map((row_shards(mesh),))
    for device, (rows,) in places.items():
        rows_of.setdefault(device.process_index, set()).add(rows.start or 0)
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    return parts.index(tuple(sorted(rows_of[jax.process_index()]))), len(parts)


def to_device(batch: Mapping[str, Mapping[str, np.ndarray]], mesh: Mesh) -> Any:
    """This process's rows of a batch → global arrays, rows split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), dict(batch))
