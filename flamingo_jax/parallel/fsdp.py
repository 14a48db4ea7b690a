"""Weights that lie split over the mesh's `fsdp` axis, and are whole only while they are used.

XLA left alone gathers whole stacks of layers, or moves activations instead.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

FSDP_AXIS = "fsdp"


def with_specs(state: nnx.State, specs: Mapping[tuple, PartitionSpec]) -> nnx.State:
    """Returns a model's state whose parameters remember where they lie, for `gathered`.

    Args:
      state: of a model.
      specs: by flat path.
    """
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        spec, ndim = specs[path], len(leaf.get_value().shape)
        leaf = leaf.copy()
        leaf.set_metadata(spec=(*spec, *[None] * (ndim - len(spec))))
        leaves.append((path, leaf))
    return nnx.from_flat_state(leaves)


def gathered(param: nnx.Variable, dtype: DTypeLike) -> Float[Array, "..."]:
    """Returns a parameter whole on every device, but for the `tensor` axis' split.

    A matrix is cast to `dtype` first, which is what travels; so is its gradient, summed over
    devices in `dtype`: each device's share of it was computed in it. Without a mesh in force, or
    without specs (see `with_specs`), a parameter is given as it is.
    """
    known = param.get_metadata().get("spec") if is_split() else None
    if not known:
        return jnp.asarray(param[...])
    # Inside of a scan over layers a parameter has lost its first axis.
    spec = known[-param.ndim :] if param.ndim else ()
    if not any(FSDP_AXIS in _axes(entry) for entry in spec):
        return param[...]
    return _gather(param[...], spec, dtype if param.ndim > 1 else param.dtype)


def is_split() -> bool:
    """Returns whether the mesh in force splits weights."""
    return jax.sharding.get_abstract_mesh().shape.get(FSDP_AXIS, 1) > 1


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight: Float[Array, "..."], spec: tuple, dtype: DTypeLike) -> Float[Array, "..."]:
    whole = PartitionSpec(*map(_without_fsdp, spec))
    # Said twice, so that the cast stays before the gather.
    shard = jax.lax.with_sharding_constraint(weight.astype(dtype), PartitionSpec(*spec))
    return jax.lax.with_sharding_constraint(shard, whole)


def _gather_forward(weight, spec, dtype):
    # An empty array carries the weight's own type.
    return _gather(weight, spec, dtype), weight[:0]


def _gather_backward(spec, dtype, residual, gradient):
    shard = jax.lax.with_sharding_constraint(gradient, PartitionSpec(*spec))
    return (shard.astype(residual.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _without_fsdp(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(axis for axis in _axes(entry) if axis != FSDP_AXIS)
