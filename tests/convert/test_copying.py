"""Copies of mapped arrays: equal numbers in memory that devices take as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.weights.copying import FEWEST_BYTES, copied, copy_into, fresh
from flamingo_jax.weights.readers import drop_mapped_pages

LARGE = FEWEST_BYTES // 4  # elements of float32


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (1, LARGE), (3, LARGE // 2), (LARGE // 4, 2, 3)])
def test_numbers_are_those_of_a_cast(shape, dtype):
    numbers = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    for view in (numbers, numbers.T):
        ours = copied(view, dtype)
        assert ours.dtype == dtype
        assert np.array_equal(ours, view.astype(dtype))
        assert not np.shares_memory(ours, view)


def test_writes_into_a_strided_part():
    out = np.zeros((4, LARGE), np.float32)
    copy_into(out[::2], np.ones((2, LARGE), np.float32))
    assert np.array_equal(out.sum(axis=1), [LARGE, 0, LARGE, 0])


@pytest.mark.parametrize("shape", [(4, LARGE + 1), (1, LARGE), (LARGE,), ()])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="cannot be copied into"):
        copy_into(np.zeros((4, LARGE), np.float32), np.zeros(shape, np.float32))


def test_a_cpu_takes_the_memory_without_a_copy():
    ours = copied(np.ones((3, 5), np.float32), np.float32)
    taken = jax.device_put(ours)
    assert taken.unsafe_buffer_pointer() == ours.ctypes.data
    # Given away, it is still ours.
    jax.block_until_ready(jax.jit(lambda x: 2 * x, donate_argnums=0)(taken))
    assert np.array_equal(ours, np.ones((3, 5)))


def test_fresh_memory_is_not_forgotten_with_files():
    ours = fresh((4096,), np.float32)
    ours[...] = 1
    drop_mapped_pages([ours, ours[1:]])
    assert ours.sum() == 4096
