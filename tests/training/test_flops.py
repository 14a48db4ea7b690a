import dataclasses

import jax
import jax.numpy as jnp
import pytest

from flamingo_jax.config import Config
from flamingo_jax.data.streams import StreamConfig
from flamingo_jax.models.params import flamingo_graph, select
from flamingo_jax.schema import build
from flamingo_jax.training.flops import step_flops
from flamingo_jax.training.step import stream_losses
from flamingo_jax.training.traced_flops import jaxpr_flops
from tests import tiny

NEW = ("^resampler/", "^cross_attention/", "^decoder/embedding/new_rows$")


def config_of(remat="none", trainable=NEW, **decoder) -> Config:
    """Widths large enough that the layers dominate, and a layer left over."""
    values = tiny.get_config().to_dict()
    values["model"]["vision"].update(width=32)
    values["model"]["decoder"].update(width=32, num_layers=5, **decoder)
    values["model"]["remat"] = remat
    values["trainable"] = trainable
    return build(Config, values)


def traced_flops(config: Config) -> float:
    """FLOPs of loss and gradient, from the program that computes them."""
    graph = flamingo_graph(config.model)
    shapes = graph.shapes()
    trained = select(shapes, config.trainable)
    params = {p: s for p, s in shapes.items() if p in trained}
    frozen = {p: s for p, s in shapes.items() if p not in trained}

    def rows(stream: StreamConfig):
        text = (stream.batch_size, stream.row_length)
        size = config.model.vision.image_size
        images = (stream.batch_size, stream.row_images, 1, size, size, 3)
        return {
            "images": jax.ShapeDtypeStruct(images, jnp.uint8),
            "tokens": jax.ShapeDtypeStruct(text, jnp.int32),
            "segments": jax.ShapeDtypeStruct(text, jnp.int32),
            "weights": jax.ShapeDtypeStruct(text, jnp.float32),
        }

    batch = {name: rows(stream) for name, stream in config.streams.items()}

    def loss(params, frozen, batch):
        return sum(stream_losses(graph, params, frozen, batch, dict.fromkeys(batch, 1.0)).values())

    return jaxpr_flops(jax.jit(jax.grad(loss)).trace(params, frozen, batch).jaxpr)


@pytest.mark.parametrize(
    ("remat", "trainable"),
    [
        ("none", NEW),
        ("elementwise", NEW),
        ("dots", NEW),
        ("full", NEW),
        ("dots", ("",)),
        ("full", ("",)),
        ("full", ("^cross_attention/",)),
        ("none", ("^decoder/(layers|tail)/",)),
    ],
)
def test_the_count_is_that_of_the_traced_program(remat, trainable):
    config = config_of(remat, trainable)
    flops = step_flops(config)
    assert flops.total + flops.recomputed == pytest.approx(traced_flops(config), rel=0.02)
    assert bool(flops.recomputed) == (remat in ("dots", "full"))


@pytest.mark.parametrize(
    "decoder", [{"parallel_residual": True}, {"tie_head": False}, {"gated_mlp": True}]
)
def test_other_decoders_are_counted_too(decoder):
    config = config_of("full", **decoder)
    flops = step_flops(config)
    assert flops.total + flops.recomputed == pytest.approx(traced_flops(config), rel=0.02)


def test_frozen_parts_have_no_weight_gradient():
    parts = step_flops(config_of()).by_part
    assert parts["vision"].backward == 0
    assert parts["lm"].backward == pytest.approx(parts["lm"].forward, rel=0.2)  # attention has two
    assert parts["cross_attention"].backward == 2 * parts["cross_attention"].forward


def test_flops_count_all_rows_of_an_update():
    config = config_of()
    stream = dataclasses.replace(config.streams["pairs"], batch_size=16)
    double = dataclasses.replace(config, streams={"pairs": stream})
    single = dataclasses.replace(config, streams={"pairs": config.streams["pairs"]})
    assert step_flops(double).total == 2 * step_flops(single).total


def test_loops_are_counted_by_their_trips():
    def looped(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]

    jaxpr = jax.jit(looped).trace(jax.ShapeDtypeStruct((4, 4), jnp.float32)).jaxpr
    assert jaxpr_flops(jaxpr) == 7 * 2 * 4**3
