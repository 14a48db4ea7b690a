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
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from flamingo_jax.conversion.readers import forget_pages, indexed_files, read_json, read_safetensors
from flamingo_jax.conversion.weights import Index, Leaf
from flamingo_jax.conversion.writers import Entry, new_directory, write_safetensors
from flamingo_jax.data.images import resize_and_crop
from flamingo_jax.errors import UserError
from flamingo_jax.inference.model import Inference
from flamingo_jax.models import quantization
from flamingo_jax.models.flamingo import FlamingoConfig, Images, check_image_count
from flamingo_jax.models.params import ModelGraph, Params, flamingo_graph
from flamingo_jax.models.vision import CLIP_MEAN, CLIP_STD
from flamingo_jax.schema import build, dump
from flamingo_jax.training.sharding import parameter_spec

FORMAT = 1
SHARD_BYTES = 2 * 10**9
Compat = Literal["openflamingo"] | None


@dataclass(frozen=True)
class Origin:
    """What a converted model remembers of its torch originals, for export and verification."""

    family: str
    language_config: dict[str, Any]
    tokens: dict[str, int]
    source: dict[str, Any]


def write_directory(
    out: Path,
    config: FlamingoConfig,
    origin: Origin,
    leaves: Mapping[str, Leaf],
    tokenizer: Any = None,
) -> None:
    """Write a model directory, parameter by parameter; it appears only when complete.

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
        _write_json(folder / "preprocessor_config.json", image_settings(config.vision.image_size))
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


def _pieces(leaf: Leaf, dtype: Any) -> Iterator[np.ndarray]:
    if not leaf.stacked:
        yield leaf.read(dtype)
    else:
        rest = (slice(None),) * (len(leaf.shape) - 1)
        for layer in range(leaf.shape[0]):
            yield leaf.read(dtype, (slice(layer, layer + 1), *rest))
    forget_pages(leaf.views)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def image_settings(size: int) -> dict[str, Any]:
    """CLIP's preprocessing, as transformers' image processors write it down."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory opened for reading; weights are mapped, not read."""

    folder: Path
    config: FlamingoConfig
    origin: Origin
    leaves: dict[str, Leaf]


def open_directory(folder: Path | str) -> ModelDirectory:
    """UserError: no model directory or part of one, another format, or weights that do not fit its
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
    config = build(FlamingoConfig, facts.pop("model"), f"{folder}/config.json: model")
    arrays = {
        path: array
        for file in indexed_files(folder / "weights.index.json")
        for path, array in read_safetensors(file).items()
    }
    expected = {path: leaf.shape for path, leaf in flamingo_graph(config).shapes().items()}
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
    leaves = {p: Leaf(shape, (arrays[p],), stacked=False) for p, shape in expected.items()}
    return ModelDirectory(folder, config, Origin(**facts), leaves)


@dataclass(frozen=True)
class Processor:
    """Text and pictures → what the model takes."""

    folder: Path
    image_size: int

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, Flamingo's tokens included."""
        from flamingo_jax.conversion.tokenizer import load_tokenizer

        return load_tokenizer(self.folder / "tokenizer")

    def pixels(self, picture: Any) -> np.ndarray:
        """A PIL image → uint8 (H, W, 3): shorter side resized (bicubic), centre cropped."""
        return np.asarray(resize_and_crop(picture.convert("RGB"), self.image_size))


@dataclass(frozen=True)
class LoadedModel(Inference):
    """A model with its parameters and processor; `Inference` says what it can be asked.

    Attributes:
      graph: `graph.merge(params)` gives the `Flamingo` module.
      params: by path, on the mesh if there is one.
    """

    config: FlamingoConfig
    graph: ModelGraph
    params: Params
    processor: Processor
    origin: Origin

    @functools.cached_property
    def _forward(self) -> Any:
        return jax.jit(lambda params, *batch: self.graph.merge(params)(*batch))

    def logits(
        self, images: Images, tokens: Int[Array, "B L"], attention_mask: Int[Array, "B L"]
    ) -> Float[Array, "B L V"]:
        """Float32 logits of the next token at every position.

        Args:
          images: (B, T, F, H, W, 3), uint8 RGB or floats normalised with CLIP's mean and deviation.
          tokens: int32 ids; the k-th `<image>` of a row stands for its k-th image.
          attention_mask: 1 for text, 0 for padding, on either side.

        Raises:
          ValueError: a row has more `<image>` tokens than images.
        """
        images, tokens = jnp.asarray(images), jnp.asarray(tokens, jnp.int32)
        if images.dtype != jnp.uint8:
            images = images.astype(jnp.float32)
        size = self.config.vision.image_size
        if images.ndim != 6 or images.shape[3:] != (size, size, 3):
            raise ValueError(
                f"images have shape {images.shape}, expected (B, T, F, {size}, {size}, 3)"
            )
        if not self.config.cross_attention.uniform_beyond_images:
            check_image_count(np.asarray(tokens), self.config.image_token, images.shape[1])
        return self._forward(self.params, images, tokens, jnp.asarray(attention_mask, jnp.int32))


def load(
    folder: Path | str,
    mesh: Mesh | None = None,
    compat: Compat = None,
    quantize: Literal["int8"] | None = None,
) -> LoadedModel:
    """Open a model directory.

    Args:
      folder: written by `python -m flamingo_jax.convert import`.
      mesh: see `flamingo_jax.training.sharding.make_mesh`; each device reads its shard only.
      compat: "openflamingo" reproduces the original where it is at fault (text with more `<image>`
        tokens than images); None: such text is an error.
      quantize: "int8" holds the matrices of the vision encoder and the language model in eight
        bits (see `flamingo_jax.models.quantization`); None: as they were saved.

    Raises:
      UserError: see `open_directory`.
    """
    opened = open_directory(folder)
    config = opened.config
    if quantize not in (None, "int8"):
        raise UserError(f"quantize is {quantize!r}, expected None or 'int8'")
    if compat not in (None, "openflamingo"):
        raise UserError(f"compat is {compat!r}, expected None or 'openflamingo'")
    if compat:
        cross = dataclasses.replace(config.cross_attention, uniform_beyond_images=True)
        config = dataclasses.replace(config, cross_attention=cross)
    params = {}
    for path, leaf in opened.leaves.items():
        array = place(path, leaf, config.dtype, mesh)
        is_int8 = quantize == "int8" and quantization.is_quantized(path)
        params[path] = quantization.quantize(path, array) if is_int8 else array
    processor = Processor(opened.folder, config.vision.image_size)
    return LoadedModel(config, flamingo_graph(config), params, processor, opened.origin)


def place(path: str, leaf: Leaf, dtype: str, mesh: Mesh | None) -> jax.Array:
    """One parameter in a dtype on the mesh, where the sharding rule wants it."""

    def read(index: Index | None) -> np.ndarray:
        return leaf.read(jnp.dtype(dtype), index)

    if mesh is None:
        array = jax.device_put(leaf.read(jnp.dtype(dtype)))  # on a CPU, without a copy
    else:
        sharding = NamedSharding(mesh, parameter_spec(path, leaf.shape, mesh))
        array = jax.make_array_from_callback(leaf.shape, sharding, read)
    array.block_until_ready()
    forget_pages(leaf.views)
    return array
