"""A model as a directory: weights, config, tokenizer, image settings and certificate.

config.json                 the model's config, token ids, and what export needs to know
weights-00001-of-N.safetensors, weights.index.json     our parameters by path
tokenizer/                  as transformers saves it, Flamingo's tokens included
preprocessor_config.json    how images become pixels
certificate.json            what `convert verify` measured
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from flamingo_jax.errors import UserError
from flamingo_jax.models.params import model_graph
from flamingo_jax.models.vlm import ModelConfig, upgraded
from flamingo_jax.schema import build, dump
from flamingo_jax.weights.image_processor import image_processor
from flamingo_jax.weights.readers import (
    drop_mapped_pages,
    indexed_files,
    read_json,
    read_safetensors,
)
from flamingo_jax.weights.views import Index, LazyArray
from flamingo_jax.weights.writers import Entry, new_directory, write_safetensors

FORMAT = 1
SHARD_BYTES = 2 * 10**9
Compat = Literal["openflamingo"] | None


@dataclass(frozen=True)
class Provenance:
    """Keeps what export and verification need to know of a model's torch originals."""

    family: str
    language_config: dict[str, Any]
    tokens: dict[str, int]
    source: dict[str, Any]


def write_directory(
    out: Path,
    config: ModelConfig,
    origin: Provenance,
    leaves: Mapping[str, LazyArray],
    tokenizer: Any = None,
) -> None:
    """Writes a model directory, parameter by parameter; it appears only when complete.

    Raises:
      UserError: `out` exists, the disk has no room, or writing failed.
    """
    dtype = jnp.dtype(config.dtype)
    sizes = {path: math.prod(leaf.shape) * dtype.itemsize for path, leaf in leaves.items()}
    with new_directory(out, sum(sizes.values())) as folder:
        shards = _shards(sizes)
        index: dict[str, str] = {}
        for number, paths in enumerate(shards, start=1):
            name = f"weights-{number:05}-of-{len(shards):05}.safetensors"
            entries = {
                path: Entry(
                    leaves[path].shape, dtype, functools.partial(_pieces, leaves[path], dtype)
                )
                for path in paths
            }
            write_safetensors(folder / name, entries)
            index |= dict.fromkeys(paths, name)
        _write_json(folder / "weights.index.json", {"weight_map": index})
        facts = {"format": FORMAT, "model": dump(config), **dataclasses.asdict(origin)}
        _write_json(folder / "config.json", facts)
        _write_json(folder / "preprocessor_config.json", image_processor(config.encoder).settings())
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / "tokenizer")


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for path, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(path)
        room -= size
    return shards


def _pieces(leaf: LazyArray, dtype: Any) -> Iterator[np.ndarray]:
    if not leaf.stacked:
        yield leaf.read(dtype)
    else:
        rest = (slice(None),) * (len(leaf.shape) - 1)
        for layer in range(leaf.shape[0]):
            yield leaf.read(dtype, (slice(layer, layer + 1), *rest))
    drop_mapped_pages(leaf.views)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory opened for reading; weights are mapped, not read."""

    folder: Path
    config: ModelConfig
    origin: Provenance
    leaves: dict[str, LazyArray]


def open_directory(folder: Path | str) -> ModelDirectory:
    """Opens a model directory.

    Raises:
      UserError: no model directory or part of one, another format, or weights that do not fit its
        config.
    """
    folder = Path(folder)
    if not (folder / "weights.index.json").is_file():
        raise UserError(
            f"{folder} is no model directory (it has no weights.index.json): make one with "
            "`python -m flamingo_jax.convert import`, or `from-run` of a training run"
        )
    facts = read_json(folder / "config.json")
    if facts.pop("format", None) != FORMAT:
        raise UserError(f"{folder} is not in format {FORMAT}: import the model again")
    config = build(ModelConfig, upgraded(facts.pop("model")), f"{folder}/config.json: model")
    arrays = {
        path: array
        for file in indexed_files(folder / "weights.index.json")
        for path, array in read_safetensors(file).items()
    }
    expected = {path: leaf.shape for path, leaf in model_graph(config).shapes().items()}
    wrong = sorted(
        path
        for path in expected.keys() | arrays.keys()
        if path not in arrays or arrays[path].shape != expected.get(path)
    )
    if wrong:
        raise UserError(
            f"{folder}: weights and config.json do not fit for {', '.join(wrong)}: import again"
        )
    # One view per parameter: the layers of a stack lie behind one another in the file.
    leaves = {p: LazyArray(shape, (arrays[p],), stacked=False) for p, shape in expected.items()}
    return ModelDirectory(folder, config, Provenance(**facts), leaves)


def put_param(leaf: LazyArray, dtype: str, sharding: NamedSharding | None = None) -> jax.Array:
    """Reads one parameter in a dtype onto the devices; each gets its own shard only.

    `sharding`: None: the whole of it on the default device.
    """

    def read(index: Index | None) -> np.ndarray:
        return leaf.read(jnp.dtype(dtype), index)

    if sharding is None:
        array = jax.device_put(leaf.read(jnp.dtype(dtype)))  # on a CPU, without a copy
    else:
        array = jax.make_array_from_callback(leaf.shape, sharding, read)
    array.block_until_ready()
    drop_mapped_pages(leaf.views)
    return array
