"""The weights that a run begins with: random ones, or those of a model directory."""

from functools import partial

import jax

from flamingo_jax.errors import UserError
from flamingo_jax.models.params import Params
from flamingo_jax.train.setup import Setup, shardings
from flamingo_jax.train.step import TrainState, init_state
from flamingo_jax.weights.model_directory import ModelDirectory, open_directory, put_param


class InitialWeights:
    """Makes the trained and the frozen weights on the mesh, each when it is asked for.

    Args:
      seed: of the random weights.
      directory: a model directory whose weights to take; "": random ones.

    Raises:
      UserError: no model directory, or one of another model.
    """

    def __init__(self, setup: Setup, seed: int, directory: str = ""):
        self._setup = setup
        self._key = jax.random.key(seed)
        self._opened = _open_model(directory, setup.graph.shapes()) if directory else None

    def state(self) -> TrainState:
        """Returns the state before the first step."""
        setup, where = self._setup, shardings(self._setup.state_shapes)
        if self._opened is None:
            random_state = setup.random_state
            return jax.jit(lambda key: random_state(key)[0], out_shardings=where)(self._key)
        leaves, lies = self._opened.leaves, setup.graph.shardings(setup.mesh)
        params = {path: put_param(leaves[path], "float32", lies[path]) for path in setup.trained}
        start = partial(init_state, optimizer=setup.optimizer)
        return jax.jit(start, out_shardings=where)(params)

    def frozen(self) -> Params:
        """Returns the weights that no step changes."""
        setup, shapes = self._setup, self._setup.frozen_shapes
        if self._opened is None:
            random_state, where = setup.random_state, shardings(shapes)
            return jax.jit(lambda key: random_state(key)[1], out_shardings=where)(self._key)
        leaves = self._opened.leaves
        return {
            path: put_param(leaves[path], str(shape.dtype), shape.sharding)
            for path, shape in shapes.items()
        }


def _open_model(directory: str, shapes: Params) -> ModelDirectory:
    opened = open_directory(directory)
    differing = sorted(
        path
        for path in shapes.keys() | opened.leaves.keys()
        if path not in shapes
        or path not in opened.leaves
        or opened.leaves[path].shape != shapes[path].shape
    )
    if differing:
        raise UserError(
            f"config.init_from: the model in {directory} is not that of config.model; they "
            f"differ in {len(differing)} parameters, such as {differing[0]}"
        )
    return opened
