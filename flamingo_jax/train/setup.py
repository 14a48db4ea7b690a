"""What a run computes, of shapes alone: nothing is allocated, and the devices need not be there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flamingo_jax.errors import UserError
from flamingo_jax.models.params import (
    ModelGraph,
    Params,
    cast,
    init_params,
    model_graph,
    select,
)
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.parallel.mesh import TENSOR_AXIS, make_mesh, row_shards
from flamingo_jax.parallel.sharding import batch_sharding, tree_shardings
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.optimizer import make_optimizer
from flamingo_jax.train.step import TrainState, init_state, make_train_step


@dataclass(frozen=True)
class Setup:
    """The training step of a config on a mesh, and what it works on.

    Shapes are `jax.ShapeDtypeStruct` and know where each array lies.

    Attributes:
      trained: paths of the trained parameters.
      random_state: key → (state, frozen); to be jitted with `shardings` of the shapes below.
      state_shapes, frozen_shapes, batch_shapes: of the step's arguments; the batch is that of one
        update of every stream, over all devices.
      train_step: jitted (state, frozen, batch) → (state, metrics); consumes `state`. To be called,
        traced and lowered under `jax.set_mesh(mesh)`.
    """

    mesh: Mesh
    graph: ModelGraph
    trained: frozenset[str]
    optimizer: optax.GradientTransformation
    random_state: Callable[[jax.Array], tuple[TrainState, Params]]
    state_shapes: TrainState
    frozen_shapes: Params
    batch_shapes: dict[str, dict[str, jax.ShapeDtypeStruct]]
    train_step: Any

    @property
    def arguments(self) -> tuple[Any, Any, Any]:
        """Returns the shapes of all that `train_step` takes."""
        return self.state_shapes, self.frozen_shapes, self.batch_shapes


def set_up(config: TrainConfig, devices: list[jax.Device] | None = None) -> Setup:
    """Checks a config against itself and the devices (default: all), and makes its step.

    Raises:
      UserError: the config does not fit itself or the devices; it names the key to change.
    """
    with errors_prefixed("config.mesh"):
        mesh = make_mesh(config.mesh, devices)
    _check_batch_sizes(config, row_shards(mesh))
    _check_heads(config.model, mesh.shape[TENSOR_AXIS])
    _check_rows(config)

    graph = model_graph(config.model)
    shapes = graph.shapes()
    with errors_prefixed("config.trainable"):
        trained = select(shapes, config.trainable)
    with errors_prefixed("config.optimizer.decay"):
        optimizer = make_optimizer(
            config.optimizer, config.num_steps, {path: shapes[path] for path in trained}
        )
    random_state = partial(_random_state, config, trained, optimizer)
    start = jax.eval_shape(random_state, jax.random.key(config.seed))
    state_shapes, frozen_shapes = _placed(start, tree_shardings(start, graph.shardings(mesh), mesh))
    batch = batch_shapes(config)
    step = make_train_step(
        graph.placed(mesh),
        optimizer,
        {name: stream.weight for name, stream in config.streams.items()},
        config.accumulation_steps,
        config.optimizer.clip_norm if config.compat == "openflamingo" else None,
        {name: stream.row_parts for name, stream in config.streams.items()},
        trains_encoder=any(map(config.model.encoder.owns, trained)),
        losses={name: stream.loss for name, stream in config.streams.items()},
    )
    return Setup(
        mesh=mesh,
        graph=graph,
        trained=trained,
        optimizer=optimizer,
        random_state=random_state,
        state_shapes=state_shapes,
        frozen_shapes=frozen_shapes,
        batch_shapes=_placed(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch)),
        train_step=jax.jit(
            step,
            in_shardings=(*shardings((state_shapes, frozen_shapes)), None),
            out_shardings=(shardings(state_shapes), None),
            donate_argnums=0,
            # What the step does not read, such as CLIP's projection, is in memory all the same: so
            # it is in the compiler's account, too.
            keep_unused=True,
            compiler_options=_compiler_options(mesh),
        ),
    )


def shardings(tree: Any) -> Any:
    """Returns where each leaf lies, of arrays or shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _placed(shapes: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        where,
    )


def _compiler_options(mesh: Mesh) -> dict[str, bool | str]:
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {
        # Without it, XLA for CPUs copies both moments first: it does not see that nothing reads
        # the old ones after the new ones are written in their place.
        "xla_cpu_copy_insertion_use_region_analysis": True,
        # Its default computes whatever it can as early as it can, such as all that
        # rematerialisation computes again, and zeros to stack gradients in.
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    }


def batch_shapes(config: TrainConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the shapes of one update's batch of every stream, over all devices."""
    size = config.model.encoder.image_size
    shapes = {}
    for name, stream in config.streams.items():
        text = stream.batch_size, stream.row_length
        images = stream.batch_size, stream.row_images, 1, size, size, 3
        shapes[name] = {
            "images": jax.ShapeDtypeStruct(images, jnp.uint8),
            "tokens": jax.ShapeDtypeStruct(text, jnp.int32),
            "segments": jax.ShapeDtypeStruct(text, jnp.int32),
            "weights": jax.ShapeDtypeStruct(text, jnp.float32),
        }
    return shapes


@contextmanager
def errors_prefixed(key: str) -> Iterator[None]:
    """Turns a ValueError inside into a UserError that begins with the config key."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def _random_state(
    config: TrainConfig,
    trained: frozenset[str],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> tuple[TrainState, Params]:
    params = init_params(config.model, key)
    frozen = {path: value for path, value in params.items() if path not in trained}
    state = init_state({path: params[path] for path in trained}, optimizer)
    return state, cast(frozen, config.frozen_dtype)


def _check_heads(model: ModelConfig, size: int) -> None:
    """Refuses heads that would lie on two devices, and so be gathered in every layer."""
    heads = {
        f"{part}.{name}": count
        for part in ("encoder", "connector", "fusion", "decoder")
        for name, count in getattr(model, part).heads().items()
    }
    for key, count in heads.items():
        if count % size:
            raise UserError(
                f"config.mesh.tensor is {size}, which does not divide config.model.{key} {count}"
            )


def _check_rows(config: TrainConfig) -> None:
    """Refuses rows for which the model lacks positions.

    Learned positions begin anew with each document of a row, those of images do not.
    """
    for name, stream in config.streams.items():
        with errors_prefixed(f"config.streams.{name}.text_length"):
            config.model.decoder.check_length(min(stream.text_length, stream.part_length))
        with errors_prefixed(f"config.streams.{name}.num_images"):
            config.model.connector.check_images(stream.row_images)


def _check_batch_sizes(config: TrainConfig, row_parts: int) -> None:
    parts = row_parts * config.accumulation_steps
    for name, stream in config.streams.items():
        if stream.batch_size % parts:
            raise UserError(
                f"config.streams.{name}.batch_size is {stream.batch_size}, which does not divide "
                f"by {row_parts} devices × {config.accumulation_steps} accumulation steps: "
                f"choose a multiple of {parts}"
            )
