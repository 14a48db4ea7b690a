"""The device mesh, and the one rule that says where every array lies on it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.models.mesh import BATCH_AXES, TENSOR_AXIS

AXES = (*BATCH_AXES, TENSOR_AXIS)
STACKED = re.compile(r"/layers/|/tail/|^cross_attention/")  # parameters whose axis 0 is the layer
# Megatron's split (arXiv 1909.08053): a layer's first matmuls by their outputs (heads, hidden
# units), its last by their inputs, so that a layer sums over devices once per sub-layer.
BY_OUTPUT = re.compile(r"/(query|key|value|up|gate)/(kernel|bias)$|^decoder/head/kernel$")
BY_INPUT = re.compile(r"/(out|down)/kernel$")
BY_ROW = re.compile(r"^decoder/embedding/table$")  # the vocabulary
SMALLEST_SHARDED = 2**14  # elements of a layer; smaller arrays cost more to gather than to keep


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; −1: all that the other axes leave.

    Rows of a batch are split over `data` and `fsdp`, weights and optimizer state over `fsdp` and
    `tensor`. Devices that are neighbours on `tensor`, then on `fsdp`, are neighbours in the
    machine: with fsdp × tensor devices per node, weights are gathered inside of nodes only.

    Attributes:
      tensor: devices that share the heads and hidden units of every layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"{self}: sizes are ≥ 1, one may be -1")

    def __str__(self) -> str:
        return f"data={self.data} × fsdp={self.fsdp} × tensor={self.tensor}"

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Sizes of the axes. ValueError: they do not multiply to the number of devices."""
        sizes = [self.data, self.fsdp, self.tensor]
        if -1 in sizes:
            sizes[sizes.index(-1)] = num_devices // -math.prod(sizes)
        if math.prod(sizes) != num_devices:
            raise ValueError(
                f"mesh {self} does not fit {num_devices} devices: "
                "choose mesh sizes whose product is the number of devices"
            )
        return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over these devices (default: all).

    Raises:
      ValueError: the axes do not multiply to the number of devices, or `data` not to that of TPU
        slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = config.shape(len(devices))
    return Mesh(_arrange(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Neighbours of the last axes close together: by network of TPU slices, else by node."""
    slices = {_slice(device) for device in devices}
    if devices[0].platform != "tpu":
        # A GPU's slice is its node, whichever way a scheduler numbered the processes.
        devices = sorted(devices, key=lambda d: (_slice(d), d.process_index, d.id))
        return np.array(devices, dtype=object).reshape(shape)
    data, *inside = shape
    if data % len(slices):
        raise ValueError(f"mesh data={data} does not divide by the {len(slices)} TPU slices")

    def laid_out(split: bool) -> np.ndarray:
        if len(slices) == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        return mesh_utils.create_hybrid_device_mesh(
            (data // len(slices), *inside),
            (len(slices), 1, 1),
            devices,
            allow_split_physical_axes=split,
        )

    try:
        return laid_out("v5 lite" in devices[0].device_kind.lower())  # as `jax.make_mesh` does
    except NotImplementedError:  # no axes of the network multiply to one of the mesh
        return laid_out(True)


def _slice(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


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


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


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
