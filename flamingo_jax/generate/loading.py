"""Opens a model directory as a model that can be asked."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from flamingo_jax.data.images import ImageProcessor
from flamingo_jax.errors import UserError
from flamingo_jax.generate.model import Inference
from flamingo_jax.models.params import Params, model_graph
from flamingo_jax.models.vlm import Pictures
from flamingo_jax.ops import int8
from flamingo_jax.text.documents import check_image_count
from flamingo_jax.weights.image_processor import image_processor
from flamingo_jax.weights.model_directory import Provenance, open_directory, put_param

Compat = Literal["openflamingo"] | None


@dataclass(frozen=True)
class Processor:
    """Text and pictures → what the model takes.

    Attributes:
      folder: where the tokenizer is.
      images: makes the pixels of pictures.
    """

    folder: Path
    images: ImageProcessor

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, Flamingo's tokens included."""
        from flamingo_jax.text.tokenizer import load_transformers_tokenizer

        return load_transformers_tokenizer(self.folder / "tokenizer")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Returns ids; `special`: with the tokenizer's begin and end tokens."""
        return self.tokenizer.encode(text, add_special_tokens=special)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def pixels(self, picture: Any) -> np.ndarray:
        """Returns uint8 (H, W, 3) of a PIL image or an array; see `ImageProcessor`."""
        return self.images.pixels(picture)


@dataclass(frozen=True)
class LoadedModel(Inference):
    """A model from a directory; `Inference` says what it can be asked.

    Attributes:
      origin: where its weights come from.
    """

    processor: Processor
    origin: Provenance

    @functools.cached_property
    def _forward(self) -> Any:
        return jax.jit(lambda params, *batch: self.graph.merge(params)(*batch))

    def logits(
        self, images: Pictures, tokens: Int[Array, "B L"], attention_mask: Int[Array, "B L"]
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
        size = self.config.encoder.image_size
        if images.ndim != 6 or images.shape[3:] != (size, size, 3):
            raise ValueError(
                f"images have shape {images.shape}, expected (B, T, F, {size}, {size}, 3)"
            )
        if not self.config.fusion.uniform_beyond_images:
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
      mesh: see `flamingo_jax.parallel.mesh.make_mesh`; each device reads its shard only.
      compat: "openflamingo" reproduces the original where it is at fault (text with more `<image>`
        tokens than images); None: such text is an error.
      quantize: "int8" holds the matrices of the vision encoder and the language model in eight
        bits (see `flamingo_jax.ops.int8`); None: as they were saved.

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
        cross = dataclasses.replace(config.fusion, uniform_beyond_images=True)
        config = dataclasses.replace(config, fusion=cross)
    graph = model_graph(config)
    lies = {} if mesh is None else graph.shardings(mesh)
    params: Params = {}
    for path, leaf in opened.leaves.items():
        array = put_param(leaf, config.dtype, lies.get(path))
        axis = config.int8_axis(path, graph.facts[path]) if quantize == "int8" else None
        params[path] = array if axis is None else int8.quantize(array, axis)
    processor = Processor(opened.folder, image_processor(config.encoder))
    return LoadedModel(config, graph, params, processor, opened.origin, mesh=mesh)
