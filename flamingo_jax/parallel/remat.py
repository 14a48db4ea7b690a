"""Rematerialisation: what a layer keeps for its gradient, and what is computed again."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.parallel.fsdp import is_split

# What is kept besides a layer's input. "none": everything but gathered weights; "elementwise": the
# outputs of linear layers, of attention and of norms' statistics; "dots": those of linear layers
# alone; "full": nothing.
RematPolicy = Literal["none", "elementwise", "dots", "full"]
LINEAR_OUTPUT, ELEMENTWISE = "linear output", "elementwise"
SAVED = {"elementwise": (LINEAR_OUTPUT, ELEMENTWISE), "dots": (LINEAR_OUTPUT,), "full": ()}
T = TypeVar("T")


def linear_output(x: T) -> T:
    """Marks an output of a linear layer, which "elementwise" and "dots" keep."""
    return checkpoint_name(x, LINEAR_OUTPUT)


def keep_elementwise(x: T) -> T:
    """Marks what "elementwise" keeps, too: it is small beside what it spares."""
    return checkpoint_name(x, ELEMENTWISE)


def remat(layer: Callable[..., Any], policy: RematPolicy) -> Callable[..., Any]:
    """Returns `layer` with a gradient that keeps what the policy says."""
    layer = partial(
        layer
    )  # JAX keeps what it traced by function: a call of ours shares it, no more
    if policy == "none":
        return jax.checkpoint(layer, policy=_but_gathered_weights) if is_split() else layer
    saved = jax.checkpoint_policies.save_only_these_names(*SAVED[policy])
    return jax.checkpoint(layer, policy=saved)


def policy_for_new_modules(policy: RematPolicy) -> RematPolicy:
    """Returns the policy of connector and fusion: there, "dots" is "full". Their matmul outputs
    are a fifth of all, but a twentieth of the FLOPs."""
    return "full" if policy == "dots" else policy


def _but_gathered_weights(primitive, *_, **__) -> bool:
    # What `fsdp.gathered` is made of, without and with a gradient.
    return primitive.name not in ("custom_vjp_call", "sharding_constraint")
