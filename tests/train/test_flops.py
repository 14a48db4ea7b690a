import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.train_step_rows import run_config
from flamingo_jax.data.packing import Packing
from flamingo_jax.models.matmuls import BatchSize
from flamingo_jax.models.params import model_graph, select
from flamingo_jax.plan.hlo import HloProgram
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import StreamCounter, step_flops
from flamingo_jax.train.setup import batch_shapes, set_up
from flamingo_jax.train.step import stream_losses
from flamingo_jax.train.traced_flops import jaxpr_flops
from tests import tiny
from tests.conftest import small_config

NEW = ("^resampler/", "^cross_attention/", "^decoder/embedding/new_rows$")


def config_of(remat="none", trainable=NEW, **decoder) -> TrainConfig:
    """Widths large enough that the layers dominate, and a layer left over."""
    values = tiny.get_config().to_dict()
    values["model"]["encoder"].update(width=32)
    values["model"]["decoder"].update(width=32, num_layers=5, **decoder)
    values["model"]["remat"] = remat
    values["trainable"] = trainable
    return build(TrainConfig, values)


def loss_of(config: TrainConfig):
    """The loss of one update as a function of trained weights, frozen weights and batch; the shapes
    of these three."""
    graph = model_graph(config.model)
    shapes = graph.shapes()
    trained = select(shapes, config.trainable)
    params = {p: s for p, s in shapes.items() if p in trained}
    frozen = {p: s for p, s in shapes.items() if p not in trained}

    def loss(params, frozen, batch):
        return sum(stream_losses(graph, params, frozen, batch, dict.fromkeys(batch, 1.0)).values())

    return loss, (params, frozen, batch_shapes(config))


def traced_flops(config: TrainConfig) -> float:
    """FLOPs of loss and gradient, from the program that computes them."""
    loss, shapes = loss_of(config)
    return jaxpr_flops(jax.jit(jax.grad(loss)).trace(*shapes).jaxpr)


def compiled_flops(config: TrainConfig) -> float:
    """FLOPs of the whole training step, as it is compiled for one device."""
    setup = set_up(config, jax.devices()[:1])
    with jax.set_mesh(setup.mesh):
        traced = setup.train_step.trace(*setup.arguments)
    return HloProgram(traced.lower().compile().as_text()).dot_flops()


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
    assert bool(flops.recomputed) == (remat != "none")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_compiled_step_computes_the_least_that_its_policy_allows(remat):
    flops = step_flops(config_of(remat))
    compiled = compiled_flops(config_of(remat))
    assert flops.total + flops.recomputed == pytest.approx(compiled, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["elementwise", "dots"])
def test_so_does_the_step_that_is_measured_beside_pytorch(remat):
    config = run_config("small", 0, 1, remat, "full")
    flops = step_flops(config)
    assert flops.total + flops.recomputed == pytest.approx(compiled_flops(config), rel=0.02)


@pytest.mark.parametrize(
    "decoder", [{"parallel_residual": True}, {"tie_head": False}, {"gated_mlp": True}]
)
def test_other_decoders_are_counted_too(decoder):
    config = config_of("full", **decoder)
    flops = step_flops(config)
    assert flops.total + flops.recomputed == pytest.approx(traced_flops(config), rel=0.02)


@pytest.mark.parametrize("parts", [1, 4])
def test_packed_rows_are_counted_too(parts):
    """Shared places for images cost what they are, attention what a part of a row is."""
    config = config_of("full")
    stream = config.streams["interleaved"]
    packing = Packing(documents=8, text_length=256, images=12, parts=parts)
    streams = {"interleaved": dataclasses.replace(stream, batch_size=2, pack=packing)}
    config = dataclasses.replace(config, streams=streams)
    flops = step_flops(config)
    assert flops.total + flops.recomputed == pytest.approx(compiled_flops(config), rel=0.02)


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


@pytest.mark.parametrize("tie_head", [True, False])
def test_every_matrix_is_counted_but_clips_projection(tie_head):
    config = small_config(tie_head=tie_head)
    encoder = dataclasses.replace(config.encoder, projection_width=6)
    config = dataclasses.replace(config, encoder=encoder)
    shapes = {path: leaf.shape for path, leaf in model_graph(config).shapes().items()}
    counter = StreamCounter(config, shapes, frozenset(), BatchSize(rows=1, length=8, images=1))
    counted = {path for path, _, _ in counter.matrices()}
    matrices = {path for path in shapes if path.endswith("/kernel")}
    assert matrices - counted == {"vision/projection/kernel"}
    assert ("decoder/embedding/table" in counted) == tie_head
