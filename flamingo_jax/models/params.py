"""Models as plain pytrees: a static graph, and parameters as a flat dict of path → array.

Paths read like "decoder/layers/0/attention/query/kernel". One flat dict serves the optimizer,
checkpoints, sharding rules, conversion and the choice of what is trained.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.models.vlm import ModelConfig, VisionLanguageModel
from flamingo_jax.parallel.fsdp import with_specs
from flamingo_jax.parallel.sharding import ParamFacts, parameter_spec

# path → jax.Array, or jax.ShapeDtypeStruct where nothing is allocated; `quantization.Int8Weights`
# where a model was loaded so
Params = dict[str, Any]


@dataclass(frozen=True, eq=False)  # hashed by identity, so that it can be a static argument
class ModelGraph:
    """The structure of a model without its numbers."""

    graphdef: nnx.GraphDef = field(repr=False)
    state: nnx.State = field(repr=False)  # of jax.ShapeDtypeStruct

    def shapes(self) -> Params:
        """Every parameter's shape and float32 dtype, by path."""
        return {_join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(self.state)}

    @functools.cached_property
    def facts(self) -> dict[str, ParamFacts]:
        """Collects what each parameter's module says of it, by path."""
        return {
            _join(path): leaf.get_metadata().get("facts", ParamFacts())
            for path, leaf in nnx.to_flat_state(self.state)
        }

    def shardings(self, mesh: Mesh) -> dict[str, NamedSharding]:
        """Returns where each parameter lies on a mesh between uses, by path."""
        return {
            path: NamedSharding(mesh, parameter_spec(self.facts[path], leaf.shape, mesh))
            for path, leaf in self.shapes().items()
        }

    def placed(self, mesh: Mesh) -> "ModelGraph":
        """Returns the graph of a model whose layers gather their weights from where these lie on a
        mesh; without, XLA decides what moves."""
        return self.sharded({path: x.spec for path, x in self.shardings(mesh).items()})

    def sharded(self, specs: Mapping[str, PartitionSpec]) -> "ModelGraph":
        """The graph of a model that gathers its weights from where these specs, by path, split them
        over the mesh in force. Without, XLA decides what moves."""
        by_path = {path: specs[_join(path)] for path, _ in nnx.to_flat_state(self.state)}
        return dataclasses.replace(self, state=with_specs(self.state, by_path))

    def merge(self, *params: Mapping[str, jax.Array]) -> Any:
        """The model holding these parameters (disjoint dicts, together complete)."""
        values = {path: value for part in params for path, value in part.items()}
        flat = [
            (path, leaf.replace(values[_join(path)]))
            for path, leaf in nnx.to_flat_state(self.state)
        ]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))


def _join(path: Iterable[Any]) -> str:
    return "/".join(map(str, path))


def flatten(model: nnx.Module) -> Params:
    """Parameters of a built model by path."""
    return {_join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}


def abstract(make: Any) -> ModelGraph:
    """The structure of the module that `make()` would build, without building it."""
    graphdef, state = nnx.split(jax.eval_shape(make))
    return ModelGraph(graphdef, state)


@lru_cache(maxsize=16)
def _initialiser(config: ModelConfig) -> Any:
    """Jitted, key → model: all who ask share one trace, which takes a second or two."""
    return jax.jit(lambda key: VisionLanguageModel(config, nnx.Rngs(key)))


@lru_cache(maxsize=16)
def model_graph(config: ModelConfig) -> ModelGraph:
    return abstract(partial(_initialiser(config), jax.random.key(0)))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 parameters; call it under `jax.jit` with `out_shardings` for large models."""
    return flatten(_initialiser(config)(key))


def on_mesh_of(params: Params) -> contextlib.AbstractContextManager:
    """The mesh that the parameters lie on, in force; nothing where they lie on one device."""
    shardings = (x.sharding for x in jax.tree.leaves(params) if isinstance(x, jax.Array))
    mesh = next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else contextlib.nullcontext()


def select(paths: Iterable[str], patterns: Iterable[str]) -> frozenset[str]:
    """Paths in which some pattern (a regular expression) is found.

    Raises:
      ValueError: a pattern is not a regular expression, or matches no path.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            matches = {path for path in paths if re.search(pattern, path)}
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        if not matches:
            tops = sorted({"/".join(path.split("/")[:2]) for path in paths})
            raise ValueError(
                f"pattern {pattern!r} matches no parameter; parameters begin with: "
                + ", ".join(tops)
            )
        chosen |= matches
    return frozenset(chosen)


def cast(params: Params, dtype: str) -> Params:
    return {path: value.astype(jnp.dtype(dtype)) for path, value in params.items()}
