"""The device mesh: how it is made, and how the mesh in force splits rows and heads."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float, Shaped

BATCH_AXES = ("data", "fsdp")  # over which rows of a batch are split
TENSOR_AXIS = "tensor"  # over which heads and hidden units are split
AXES = (*BATCH_AXES, TENSOR_AXIS)


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


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def row_axes(rows: int) -> tuple[str, ...] | None:
    """Axes that split this many rows; None: no mesh is in force, or it does not divide them."""
    axes, count = _row_shards()
    return None if not axes or rows % count else axes


def rows_per_device(rows: int) -> int:
    """Returns how many of so many rows one device of the mesh in force holds."""
    return math.ceil(rows / _row_shards()[1])


def concat_per_device(parts: Sequence[Shaped[Array, "_ ..."]]) -> Shaped[Array, "N ..."]:
    """The rows of several arrays as those of one, so that a weight multiplies all of them at once.

    Each device's rows of all arrays stand next to one another: nothing moves between devices.
    """
    if len(parts) == 1:
        return parts[0]
    counts, shape = [len(part) for part in parts], parts[0].shape[1:]
    shards = _shards_of(counts)
    own = [part.reshape(shards, len(part) // shards, *shape) for part in parts]
    return jnp.concatenate(own, axis=1).reshape(sum(counts), *shape)


def split_per_device(
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


def constrain_batch(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Keep rows split over the batch axes of the mesh in force; without a mesh, do nothing.

    Stated at every layer boundary: without it XLA reshards activations between layers.
    """
    axes = row_axes(len(x))
    return x if axes is None else jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def map_rows(
    apply: Callable[[Array], Array], arrays: Sequence[Shaped[Array, "_ ..."]]
) -> list[Shaped[Array, "_ ..."]]:
    """Returns `apply` of each array, with the rows of all arrays of one shape in one call.

    No rows need no work: what they would give is empty.
    """
    made: list[Array] = list(arrays)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, array in enumerate(arrays):
        by_shape.setdefault(array.shape[1:], []).append(i)
    for same in by_shape.values():
        joined = concat_per_device([arrays[i] for i in same])
        if len(joined):
            rows = split_per_device(apply(joined), [len(arrays[i]) for i in same])
        else:
            shape = jax.eval_shape(apply, jnp.zeros((1, *joined.shape[1:]), joined.dtype))
            rows = [jnp.zeros((0, *shape.shape[1:]), shape.dtype)] * len(same)
        for i, own in zip(same, rows, strict=True):
            made[i] = own
    return made
