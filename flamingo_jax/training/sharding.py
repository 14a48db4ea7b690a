"""The device mesh, and the one rule that says where every array lies on it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.models.layers import BATCH_AXES

STACKED = re.compile(r"/layers/|/tail/|^cross_attention/")  # parameters whose axis 0 is the layer
SMALLEST_SHARDED = 2**14  # elements; smaller arrays cost more to gather than to keep


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; −1: all that the other axis leaves.

    Rows of a batch are split over both; weights and optimizer state over `fsdp` only.
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self) -> None:
        if (self.data, self.fsdp).count(-1) > 1 or 0 in (self.data, self.fsdp):
            raise ValueError(f"data={self.data}, fsdp={self.fsdp}: sizes are ≥ 1, one may be -1")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over these devices (default: all).

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [config.data, config.fsdp]
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh data={config.data} × fsdp={config.fsdp} does not fit {len(devices)} devices: "
            "choose mesh sizes whose product is the number of devices"
        )
    return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Split the first axis after the layer axis that divides by the `fsdp` axis."""
    size = mesh.shape["fsdp"]
    if size == 1 or math.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    for axis in range(int(bool(STACKED.search(path))), len(shape)):
        if shape[axis] % size == 0:
            return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


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


def to_device(batch: Mapping[str, Mapping[str, np.ndarray]], mesh: Mesh) -> Any:
    """This process's rows of a batch → global arrays, rows split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), dict(batch))
