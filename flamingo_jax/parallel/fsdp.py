"""What keeps a large model's step small: weights gathered layer by layer, and rematerialisation.

Weights lie split over the mesh's `fsdp` axis and are whole only while their layer computes. XLA
left alone gathers whole stacks of layers, or moves activations instead.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.ops.fused import LINEAR_OUTPUT, SAVE_ELEMENTWISE

FSDP_AXIS = "fsdp"
RematPolicy = Literal["none", "elementwise", "dots", "full"]
TreeT = TypeVar("TreeT")


def with_specs(state: nnx.State, specs: Mapping[tuple, PartitionSpec]) -> nnx.State:
    """A model's state whose parameters remember where they lie, for `gather`. By flat path."""
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        spec, ndim = specs[path], len(leaf.get_value().shape)
        leaf = leaf.copy()
        leaf.set_metadata(spec=(*spec, *[None] * (ndim - len(spec))))
        leaves.append((path, leaf))
    return nnx.from_flat_state(leaves)


def gather(modules: TreeT, dtype: DTypeLike) -> TreeT:
    """Modules whose weights are whole on every device, but for the `tensor` axis' split.

    Matrices are cast to `dtype` first, which is what travels; so are their gradients, summed over
    devices in `dtype`: each device's share of them was computed in it. Without a mesh in force, or
    without specs (see `with_specs`), modules stay as they are.
    """
    if not _is_split():
        return modules

    def whole(param: nnx.Variable) -> nnx.Variable:
        known = param.get_metadata().get("spec")
        if not known:
            return param
        # Inside of a scan over layers a parameter has lost its first axis.
        spec = known[-param.ndim :] if param.ndim else ()
        if not any(FSDP_AXIS in _axes(entry) for entry in spec):
            return param
        return param.replace(_gather(param[...], spec, dtype if param.ndim > 1 else param.dtype))

    return jax.tree.map(whole, modules, is_leaf=lambda node: isinstance(node, nnx.Variable))


def fsdp_remat_layer(
    apply: Callable[..., Any], dtype: DTypeLike, policy: RematPolicy
) -> Callable[..., Any]:
    """What the body of a scan over layers calls: `apply(module, x)` with gathered weights.

    `policy`: what is saved for the gradient besides the layer's input; the rest is computed again.
    "none" saves everything but gathered weights, "elementwise" the outputs of linear layers and
    what is named `KEPT`, of attention and norms, "dots" the former alone, and "full" nothing. Keys
    and values that the resampler takes from patches are saved by "none" alone. Of a Flamingo,
    "dots" is for the layers of its two pretrained models; see `of_new_layers`.
    """

    def layer(module, x):
        return apply(gather(module, dtype), x)

    if policy == "none":
        return jax.checkpoint(layer, policy=_but_gathered_weights) if _is_split() else layer
    saved = {"elementwise": (LINEAR_OUTPUT, SAVE_ELEMENTWISE), "dots": (LINEAR_OUTPUT,), "full": ()}
    names = jax.checkpoint_policies.save_only_these_names(*saved[policy])
    return jax.checkpoint(layer, policy=names)


def policy_for_new_modules(policy: RematPolicy) -> RematPolicy:
    """The policy of resampler and cross-attention: there, "dots" is "full". Their matmul outputs
    are a fifth of all, but a twentieth of the FLOPs."""
    return "full" if policy == "dots" else policy


def _but_gathered_weights(primitive, *_, **__) -> bool:
    # What `_gather` is made of, without and with a gradient.
    return primitive.name not in ("custom_vjp_call", "sharding_constraint")


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


def _is_split() -> bool:
    return jax.sharding.get_abstract_mesh().shape.get(FSDP_AXIS, 1) > 1


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _without_fsdp(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(axis for axis in _axes(entry) if axis != FSDP_AXIS)
