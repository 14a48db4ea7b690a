"""What the compiled step of a model split over eight devices moves and keeps."""

import math
import re

import jax
import pytest
from jax.extend import core

from flamingo_jax.parallel import sharding
from flamingo_jax.plan.hlo import HloProgram
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.setup import set_up
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def small():
    """Every matrix of a layer is large enough to be split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALLEST_SHARDED", 2**11)
        yield


def config_of(remat: str) -> TrainConfig:
    """Every kind of matrix has its own shape."""
    values = tiny.get_config().to_dict()
    model = values["model"]
    model["encoder"].update(width=96, num_layers=2, mlp_width=320)
    model["connector"].update(num_layers=2, num_heads=2, head_dim=40, feed_forward_multiple=3)
    model["decoder"].update(width=128, num_layers=5, mlp_width=384, vocab_size=40)
    model["fusion"].update(interval=2, num_heads=2, head_dim=88)
    model["remat"] = remat
    values["mesh"] = {"data": 1, "fsdp": 8}
    return build(TrainConfig, values)


@pytest.fixture(scope="module")
def compiled():
    """(config, program, text of the compiled program) with remat per layer."""
    config = config_of("full")
    program, traced = trace(config)
    return config, program, traced.lower().compile().as_text()


@pytest.fixture(scope="module")
def step(compiled):
    """(config, program, compiled program)"""
    config, program, text = compiled
    return config, program, HloProgram(text)


def trace(config):
    program = set_up(config)
    with jax.set_mesh(program.mesh):
        return program, program.train_step.trace(*program.arguments)


def layer_shapes(program, paths) -> dict[str, tuple[int, ...]]:
    """Sorted shapes of split parameters while their layer computes, by path."""
    shapes = {**program.state_shapes.params, **program.frozen_shapes}
    return {
        path: tuple(sorted(leaf.shape[program.graph.facts[path].stacked :]))
        for path, leaf in program.graph.shapes().items()
        if path in paths and "fsdp" in shapes[path].sharding.spec
    }


def shape_of(array: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.search(r"\[(.*)\]", array)[1].split(",") if n)


def moved(hlo, kinds) -> list[tuple[tuple[int, ...], int]]:
    """Sorted shape (compilers transpose) of everything that these collectives make whole or sum,
    and how often."""
    return [
        (tuple(sorted(shape_of(array))), collective.trips)
        for collective in hlo.collectives()
        if collective.kind in kinds
        for array in collective.shapes
    ]


def test_every_weight_is_gathered_one_layer_at_a_time(step):
    config, program, hlo = step
    allowed = layer_shapes(program, program.graph.shapes())
    gathered = moved(hlo, ["all-gather"])
    # And a gradient: of the resampler's media norms, which are computed inside its split matrices.
    norms = program.graph.shapes()["resampler/layers/media_norm/scale"].shape
    assert {shape for shape, _ in gathered} <= {*allowed.values(), norms}
    assert allowed["decoder/layers/0/mlp/up/kernel"] == allowed["decoder/tail/mlp/down/kernel"]
    times = sum(n for shape, n in gathered if shape == allowed["decoder/tail/mlp/down/kernel"])
    # Both matrices of all five layers, forward and again backward, for both streams together.
    assert times == 2 * config.model.decoder.num_layers * 2
    assert len(config.streams) == 2


def test_no_activation_moves(step):
    _, _, hlo = step
    kinds = {collective.kind for collective in hlo.collectives()}
    assert kinds <= {"all-gather", "all-reduce", "reduce-scatter"}


def test_only_trained_weights_are_reduced(step):
    _, program, hlo = step
    trained = layer_shapes(program, program.trained)
    frozen = layer_shapes(program, program.graph.shapes().keys() - program.trained)
    summed = {shape for shape, _ in moved(hlo, ["all-reduce", "reduce-scatter"])}
    missing = {path for path, shape in trained.items() if shape not in summed}
    assert not missing, summed
    assert not summed & (set(frozen.values()) - set(trained.values()))


def test_state_is_of_trained_weights_alone(step):
    _, program, _ = step
    sizes = {path: math.prod(leaf.shape) for path, leaf in program.graph.shapes().items()}
    trained = sum(sizes[path] for path in program.trained)
    state = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state_shapes))
    assert trained < 0.5 * sum(sizes.values())
    assert state == pytest.approx(3 * trained, abs=8)  # weights, two moments, counters


def test_weights_and_moments_are_updated_in_their_place(compiled):
    _, _, text = compiled
    given = re.findall(
        r"%(\S+) = \S+ parameter\(\d+\).*op_name=\"state\.(?:params|opt_state)", text
    )
    copied = set(re.findall(r" copy\(%?([^)\s]+)\)", text))
    assert len(given) > 30
    assert not copied & set(given)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_loop_keeps_a_copy_of_the_weights(remat):
    """Neither of the frozen stacks nor of what was gathered."""
    program, traced = trace(config_of(remat))
    frozen = program.graph.shapes().keys() - program.trained
    shapes, facts = program.graph.shapes(), program.graph.facts
    large = {shapes[p].shape for p in frozen if facts[p].stacked and len(shapes[p].shape) == 3}
    kept = {v.aval.shape for eqn in scans(traced.jaxpr.jaxpr) for v in eqn.outvars}
    assert large
    assert not kept & large


def scans(jaxpr: core.Jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, core.ClosedJaxpr):
                    yield from scans(item.jaxpr)
                elif isinstance(item, core.Jaxpr):
                    yield from scans(item)
