"""A config turned into what a run works with: mesh, model, parameters, step and data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from flamingo_jax.config import Config
from flamingo_jax.data.pipeline import Stream, make_streams
from flamingo_jax.data.tokenizer import TextTokens, load_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.model_directory import ModelDirectory, open_directory, place
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.layers import TENSOR_AXIS
from flamingo_jax.models.params import (
    ModelGraph,
    Params,
    cast,
    flamingo_graph,
    init_params,
    select,
)
from flamingo_jax.training.optimizer import make_optimizer
from flamingo_jax.training.sharding import make_mesh, row_shards, tree_shardings
from flamingo_jax.training.step import TrainState, init_state, make_train_step


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
    tokens: TextTokens
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
    with _naming("config.mesh"):
        mesh = make_mesh(config.mesh, devices)
    _check_batch_sizes(config, row_shards(mesh))
    _check_heads(config.model, mesh.shape[TENSOR_AXIS])
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    streams = make_streams(config.streams, tokens, config.model.vision.image_size)

    graph = flamingo_graph(config.model)
    shapes = graph.shapes()
    with _naming("config.trainable"):
        trained = select(shapes, config.trainable)
    with _naming("config.optimizer.decay"):
        optimizer = make_optimizer(
            config.optimizer, config.num_steps, {path: shapes[path] for path in trained}
        )
    opened = _open_model(config, shapes) if config.init_from else None

    def random_state(key: jax.Array) -> tuple[TrainState, Params]:
        params = init_params(config.model, key)
        frozen = {path: value for path, value in params.items() if path not in trained}
        state = init_state({path: params[path] for path in trained}, optimizer)
        return state, cast(frozen, config.frozen_dtype)

    key = jax.random.key(config.seed)
    state_shapes, frozen_shapes = jax.eval_shape(random_state, key)
    state_shardings, frozen_shardings = tree_shardings((state_shapes, frozen_shapes), mesh)

    def make_trained() -> TrainState:
        if opened is None:
            return jax.jit(lambda key: random_state(key)[0], out_shardings=state_shardings)(key)
        params = {path: place(path, opened.leaves[path], "float32", mesh) for path in trained}
        start = partial(init_state, optimizer=optimizer)
        return jax.jit(start, out_shardings=state_shardings)(params)

    def make_frozen() -> Params:
        if opened is None:
            return jax.jit(lambda key: random_state(key)[1], out_shardings=frozen_shardings)(key)
        return {
            path: place(path, opened.leaves[path], config.frozen_dtype, mesh)
            for path in frozen_shapes
        }

    step = make_train_step(
        graph,
        optimizer,
        {name: stream.weight for name, stream in config.streams.items()},
        config.accumulation_steps,
        config.optimizer.clip_norm if config.compat == "openflamingo" else None,
    )
    return Run(
        config=config,
        mesh=mesh,
        graph=graph,
        trained=trained,
        tokens=tokens,
        streams=streams,
        make_trained=make_trained,
        make_frozen=make_frozen,
        state_shapes=state_shapes,
        state_shardings=state_shardings,
        train_step=jax.jit(
            step,
            in_shardings=(state_shardings, frozen_shardings, None),
            out_shardings=(state_shardings, None),
            donate_argnums=0,
        ),
    )


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """A ValueError inside becomes a UserError that begins with the config key."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


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


def _check_heads(model: FlamingoConfig, size: int) -> None:
    """A head that lies on two devices would be gathered in every layer."""
    heads = {
        "vision.num_heads": model.vision.num_heads,
        "resampler.num_heads": model.resampler.num_heads,
        "decoder.num_heads": model.decoder.num_heads,
        "decoder.num_kv_heads": model.decoder.kv_heads,
        "cross_attention.num_heads": model.cross_attention.num_heads,
    }
    for key, count in heads.items():
        if count % size:
            raise UserError(
                f"config.mesh.tensor is {size}, which does not divide config.model.{key} {count}"
            )


def _check_batch_sizes(config: Config, row_parts: int) -> None:
    parts = row_parts * config.accumulation_steps
    for name, stream in config.streams.items():
        if stream.batch_size % parts:
            raise UserError(
                f"config.streams.{name}.batch_size is {stream.batch_size}, which does not divide "
                f"by {row_parts} devices × {config.accumulation_steps} accumulation steps: "
                f"choose a multiple of {parts}"
            )
