"""Fingerprints of arrays: exact, computed where the arrays lie, the same on every mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


def fingerprints(tree: Any) -> dict[str, str]:
    """Hashes each leaf to 64 bits, in hexadecimal, by path; any bit of the leaf changes them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    hashed = jax.device_get(_hash([leaf for _, leaf in leaves])) if leaves else []
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): "".join(f"{h:08x}" for h in pair)
        for (path, _), pair in zip(leaves, hashed, strict=True)
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Returns the paths whose fingerprints differ, or that only one has."""
    return sorted(p for p in one.keys() | other.keys() if one.get(p) != other.get(p))


@jax.jit
def _hash(leaves: Sequence[Array]) -> list[UInt32[Array, "2"]]:
    return [_hash_leaf(leaf) for leaf in leaves]


def _hash_leaf(x: Array) -> UInt32[Array, "2"]:
    """Computes Σ mix(bits, position) mod 2³²: in any order, so on any mesh, the same number."""
    bits = jax.lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}"))
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        position += stride * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = _mix(bits.astype(jnp.uint32) ^ _mix(position + np.uint32(0x9E3779B9)))
    return jnp.stack([mixed.sum(), ((mixed ^ (mixed >> 15)) * np.uint32(0x2C1B3C6D)).sum()])


def _mix(x: Array) -> Array:
    """Applies the finalizer of MurmurHash3, a bijection of 32 bits."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
