"""A config turned into what a run works with: mesh, model, parameters, step and data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from flamingo_jax.data.pipeline import Stream, make_streams
from flamingo_jax.errors import UserError
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.text.tokenizer import TextTokenizer, load_tokenizer
from flamingo_jax.train.config import Config
from flamingo_jax.train.program import build_program
from flamingo_jax.train.step import TrainState, init_state
from flamingo_jax.weights.model_directory import ModelDirectory, open_directory, place


@dataclass(frozen=True)
class Run:
    """Everything a config determines.

    Attributes:
      make_trained: gives the first state on the mesh: random, or from a model directory; compiles
        and allocates when called.
      make_frozen: gives the frozen parameters likewise.
      state_shapes, state_shardings: of each leaf of the state.
      train_step: jitted (state, frozen, batch) → (state, metrics); consumes `state`.
    """

    config: Config
    mesh: Mesh
    graph: ModelGraph
    trained: frozenset[str]
    tokens: TextTokenizer
    streams: dict[str, Stream]
    make_trained: Callable[[], TrainState]
    make_frozen: Callable[[], Params]
    state_shapes: TrainState
    state_shardings: TrainState
    train_step: Callable[[TrainState, Params, Any], tuple[TrainState, dict[str, jax.Array]]]

    def make_state(self) -> tuple[TrainState, Params]:
        """The first (state, frozen)."""
        return self.make_trained(), self.make_frozen()

    def state_like(self) -> TrainState:
        """The state as shapes with shardings, to restore into."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            self.state_shapes,
            self.state_shardings,
        )


def set_up(config: Config, devices: list[jax.Device] | None = None) -> Run:
    """Check a config against itself, the data and the devices, before anything is computed.

    Raises:
      UserError: see the checks below; each names the key to change.
    """
    program = build_program(config, devices)
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    streams = make_streams(config.streams, tokens, config.model.encoder.image_size)
    opened = _open_model(config, program.graph.shapes()) if config.init_from else None

    key = jax.random.key(config.seed)
    mesh, random_state = program.mesh, program.random_state

    def make_trained() -> TrainState:
        shardings = program.state_shardings
        if opened is None:
            return jax.jit(lambda key: random_state(key)[0], out_shardings=shardings)(key)
        params = {p: place(p, opened.leaves[p], "float32", mesh) for p in program.trained}
        start = partial(init_state, optimizer=program.optimizer)
        return jax.jit(start, out_shardings=shardings)(params)

    def make_frozen() -> Params:
        if opened is None:
            shardings = program.frozen_shardings
            return jax.jit(lambda key: random_state(key)[1], out_shardings=shardings)(key)
        return {
            path: place(path, opened.leaves[path], config.frozen_dtype, mesh)
            for path in program.frozen_shapes
        }

    return Run(
        config=config,
        mesh=program.mesh,
        graph=program.graph,
        trained=program.trained,
        tokens=tokens,
        streams=streams,
        make_trained=make_trained,
        make_frozen=make_frozen,
        state_shapes=program.state_shapes,
        state_shardings=program.state_shardings,
        train_step=program.train_step,
    )


def _open_model(config: Config, shapes: Params) -> ModelDirectory:
    """UserError: no model directory, or one of another model."""
    opened = open_directory(config.init_from)
    differing = sorted(
        path
        for path in shapes.keys() | opened.leaves.keys()
        if path not in shapes
        or path not in opened.leaves
        or opened.leaves[path].shape != shapes[path].shape
    )
    if differing:
        raise UserError(
            f"config.init_from: the model in {config.init_from} is not that of config.model; they "
            f"differ in {len(differing)} parameters, such as {differing[0]}"
        )
    return opened
