"""Matmul FLOPs of a traced program, to check the count of `flops.py` and to plan."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def jaxpr_flops(closed_jaxpr: Any) -> float:
    """Matmul FLOPs of a traced program (`jax.jit(f).trace(…).jaxpr`), loops counted by their trips.

    XLA's own `cost_analysis` counts the body of a loop once.
    """
    return _jaxpr_flops(closed_jaxpr.jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2.0 * eqn.outvars[0].aval.size * math.prod(shape[a] for a in contracted)
        total += _cudnn_flops(eqn)
        inner = [_jaxpr_flops(sub) for sub in _subjaxprs(eqn.params)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += _runs(eqn) * sum(inner)
    return total


def _runs(eqn: Any) -> int:
    """How often the program inside of an operation runs."""
    if eqn.primitive.name == "pallas_call":
        return math.prod(eqn.params["grid_mapping"].grid)
    if eqn.primitive.name == "shard_map":  # a device's part of the work
        return eqn.params["mesh"].size
    return eqn.params.get("length", 1)


def _cudnn_flops(eqn: Any) -> float:
    """Of cuDNN's attention: two matmuls forward; backward five, one of them for the second time."""
    matmuls = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}
    if eqn.primitive.name not in matmuls:
        return 0.0
    queries, keys = eqn.invars[0].aval, eqn.invars[1].aval
    return matmuls[eqn.primitive.name] * 2.0 * queries.size * keys.shape[1]


def _subjaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
