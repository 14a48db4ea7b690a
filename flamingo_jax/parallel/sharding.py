"""The one rule that says where every array lies on the mesh."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.parallel.mesh import BATCH_AXES, TENSOR_AXIS, row_shards

STACKED = re.compile(r"/layers/|/tail/|^cross_attention/")  # parameters whose axis 0 is the layer
# Megatron's split (arXiv 1909.08053): a layer's first matmuls by their outputs (heads, hidden
# units), its last by their inputs, so that a layer sums over devices once per sub-layer.
BY_OUTPUT = re.compile(r"/(query|key|value|up|gate)/(kernel|bias)$|^decoder/head/kernel$")
BY_INPUT = re.compile(r"/(out|down)/kernel$")
BY_ROW = re.compile(r"^decoder/embedding/table$")  # the vocabulary
SMALLEST_SHARDED = 2**14  # elements of a layer; smaller arrays cost more to gather than to keep


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where a parameter lies between uses: as it is computed with, and split over `fsdp` besides,
    along the first axis after the layer axis that divides."""
    axes = _tensor_axes(path, shape, mesh)
    size = mesh.shape["fsdp"]
    first = int(bool(STACKED.search(path)))
    if size > 1 and math.prod(shape[first:]) >= SMALLEST_SHARDED:
        for axis in range(first, len(shape)):
            if shape[axis] % (size * math.prod(mesh.shape[a] for a in axes[axis])) == 0:
                axes[axis] = (*axes[axis], "fsdp")
                break
    return _spec(axes)


def gathered_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where a parameter lies while its layer computes: split over `tensor` only."""
    return _spec(_tensor_axes(path, shape, mesh))


def _tensor_axes(path: str, shape: tuple[int, ...], mesh: Mesh) -> list[tuple[str, ...]]:
    axes: list[tuple[str, ...]] = [()] * len(shape)
    size = mesh.shape[TENSOR_AXIS]
    for pattern, axis in ((BY_OUTPUT, -1), (BY_INPUT, -2), (BY_ROW, 0)):
        if size > 1 and pattern.search(path) and shape[axis] % size == 0:
            axes[axis] = (TENSOR_AXIS,)
    return axes


def _spec(axes: list[tuple[str, ...]]) -> PartitionSpec:
    entries = [a[0] if len(a) == 1 else a or None for a in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a tree whose innermost dict keys are parameter paths.

    Parameters and optimizer state are such trees; other leaves (counters) are replicated.
    """

    def sharding(path, leaf):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        spec = parameter_spec(keys[-1], leaf.shape, mesh) if keys else PartitionSpec()
        return NamedSharding(mesh, spec)

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
