"""The least bytes of an update, against hand counts and what the program keeps for its gradient."""

import dataclasses
import math

import jax
import pytest

from flamingo_jax.models.params import model_graph, select
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.roofline import OPTIMIZER, Ceilings, PartFloor, floor_seconds, step_floor
from tests.train.test_flops import NEW, config_of, loss_of


def kept_bytes(config: TrainConfig) -> int:
    """Of all that JAX keeps from the forward to the backward pass, weights included."""
    loss, shapes = loss_of(config)

    def backward(params, frozen, batch):
        return jax.vjp(lambda params: loss(params, frozen, batch), params)[1]

    kept = jax.eval_shape(backward, *shapes)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))


def saved(config: TrainConfig) -> float:
    return sum(floor.saved_bytes for floor in step_floor(config).values())


@pytest.mark.parametrize("decoder", [{}, {"parallel_residual": True}, {"gated_mlp": True}])
def test_what_dots_saves_more_than_full_is_what_jax_keeps_more(decoder):
    full, dots = config_of("full", **decoder), config_of("dots", **decoder)
    more = kept_bytes(dots) - kept_bytes(full)
    assert saved(dots) - saved(full) == pytest.approx(more, rel=0.02)
    assert saved(full) > 0


def test_no_policy_keeps_less_than_the_floor():
    for remat in ("none", "dots", "full"):
        config = config_of(remat)
        assert kept_bytes(config) >= saved(config)


def test_weights_are_read_once_a_pass_that_needs_them():
    config = config_of(trainable=NEW)
    shapes = model_graph(config.model).shapes()

    def numbers(prefix: str) -> int:
        kernels = [s.shape for p, s in shapes.items() if p.startswith(prefix) and "kernel" in p]
        return sum(map(math.prod, kernels))

    floors = step_floor(config)
    size = {"bfloat16": 2, "float32": 4}[config.frozen_dtype]
    assert floors["vision"].weight_bytes == size * numbers("vision/")  # no backward pass
    assert floors["lm"].weight_bytes == 2 * size * numbers("decoder/")
    assert floors["cross_attention"].weight_bytes == 2 * 4 * numbers("cross_attention/")
    trained = [s for p, s in shapes.items() if p in select(shapes, NEW)]
    count = sum(math.prod(s.shape) for s in trained)
    # Gradient: written, read for its norm, read; both moments and the weight: read and written.
    assert floors[OPTIMIZER].weight_bytes == 4 * 9 * count


def test_activations_of_a_layer_are_counted_by_hand():
    config = config_of("full")
    tokens = sum(s.batch_size * s.row_length for s in config.streams.values())
    decoder = config.model.decoder
    layer_input = 4 * tokens * decoder.width
    lm = step_floor(config)["lm"]
    assert lm.saved_bytes == decoder.num_layers * layer_input
    assert lm.activation_bytes == decoder.num_layers * 5 * layer_input


def test_rows_cost_activations_and_micro_batches_cost_weights():
    config = config_of()
    rows = {n: dataclasses.replace(s, batch_size=16) for n, s in config.streams.items()}
    double = step_floor(dataclasses.replace(config, streams=rows))
    steps = step_floor(dataclasses.replace(config, accumulation_steps=2))
    for part, single in step_floor(config).items():
        assert double[part].activation_bytes == 2 * single.activation_bytes
        assert double[part].weight_bytes == single.weight_bytes
        assert steps[part].activation_bytes == single.activation_bytes
        factor = 11 / 9 if part == OPTIMIZER else 2
        assert steps[part].weight_bytes == pytest.approx(factor * single.weight_bytes)


def test_the_longer_of_arithmetic_and_memory_counts():
    ceilings = Ceilings(flops=100.0, bandwidth=10.0)
    floors = {
        "busy": PartFloor(flops=300.0, recomputed=100.0, weight_bytes=10.0),
        "moving": PartFloor(flops=100.0, activation_bytes=20.0, weight_bytes=10.0),
    }
    assert floor_seconds(floors, ceilings) == pytest.approx(4 + 3)
