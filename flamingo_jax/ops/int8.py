"""Frozen weights held in eight bits.

Each output channel of a matrix has its own scale, and weights are whole numbers between −127 and
127 times it. They stay so in memory, and become floats where they are read, inside the compiled
program, next to the matmul that reads them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

LEVELS = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Weights:
    """A parameter that stands in for an array: `weights[...]` is the array.

    It is a pytree, so that layers may be stacked, sliced and scanned, and lie on a mesh.
    """

    values: Int8[Array, "..."]
    scales: Float[Array, "..."]  # of the same rank; 1 where the channel's weights lie

    def __getitem__(self, index: Any) -> Float[Array, "..."]:
        return (self.values.astype(self.scales.dtype) * self.scales)[index]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


def quantize(weights: Float[Array, "..."], contracted: int) -> Int8Weights:
    """Returns weights in eight bits: the error of each is at most half its channel's scale.

    `contracted`: the axis that a matmul sums over, −2 of a kernel (..., in, out), −1 of the
    vocabulary's table, whose rows are the head's outputs and the embedding's inputs.
    """
    return _quantize(weights, axis=contracted)


@partial(jax.jit, static_argnames="axis")
def _quantize(weights: Array, axis: int) -> Int8Weights:
    largest = jnp.max(jnp.abs(weights.astype(jnp.float32)), axis=axis, keepdims=True)
    # Rounded to the weights' own dtype first, so that the values fit the scales that are kept.
    scales = jnp.where(largest > 0, largest / LEVELS, 1).astype(weights.dtype)
    values = jnp.round(weights.astype(jnp.float32) / scales.astype(jnp.float32))
    return Int8Weights(jnp.clip(values, -LEVELS, LEVELS).astype(jnp.int8), scales)
