"""A whole CLIP for similarity of images and texts: `load_clip(DIR)`."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int32
from PIL import Image

from flamingo_jax.convert.clip_text import clip_leaves, read_clip
from flamingo_jax.data.images import ImageProcessor
from flamingo_jax.errors import UserError
from flamingo_jax.models.clip import Clip, ClipConfig
from flamingo_jax.models.params import ModelGraph, Params, abstract
from flamingo_jax.text.tokenizer import load_transformers_tokenizer
from flamingo_jax.weights.image_processor import image_processor
from flamingo_jax.weights.model_directory import put_param
from flamingo_jax.weights.readers import read_json

Picture = Image.Image | np.ndarray  # the array: uint8, as `ImageProcessor.pixels` takes it
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
CHECKED_SETTINGS = ("image_mean", "image_std", "crop_size", "resample", "do_center_crop")


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """Both towers of a CLIP. Each compiles once: batches have one size, the last is filled up.

    Attributes:
      config: of both towers.
      folder: where the tokenizer is.
      batch_size: images or texts per call of the model.
    """

    config: ClipConfig
    folder: Path
    graph: ModelGraph
    params: Params
    batch_size: int

    def encode_images(self, images: Sequence[Picture]) -> Float[np.ndarray, "N P"]:
        """Unit vectors of images, with CLIP's preprocessing (see `data.images`)."""
        size = self.images.size
        pixels = (self.images.pixels(image) for image in images)
        return self._encode(self._image_tower, pixels, (size, size, 3), np.uint8)

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N P"]:
        """Unit vectors of texts; a longer one is cut to CLIP's length, its end token kept.

        Raises:
          UserError: no tokenizer beside the weights, or one of another vocabulary.
        """
        length = self.config.text.max_length
        return self._encode(self._text_tower, iter(self._tokens(texts)), (length,), np.int32)

    @functools.cached_property
    def images(self) -> ImageProcessor:
        return image_processor(self.config.vision)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the config, the tokenizer's files and the preprocessing."""
        digest = hashlib.sha256(repr(self.config).encode())
        digest.update(json.dumps(self.images.settings()).encode())
        for name in TOKENIZER_FILES:
            path = self.folder / name
            digest.update(path.read_bytes() if path.is_file() else b"")
        for parameter, array in sorted(self.params.items()):
            digest.update(parameter.encode())
            digest.update(np.asarray(array).data)
        return digest.hexdigest()

    @functools.cached_property
    def _image_tower(self) -> Callable[[Any], Any]:
        return self._compiled(lambda model, images: model.vision.pooled(images))

    @functools.cached_property
    def _text_tower(self) -> Callable[[Any], Any]:
        return self._compiled(lambda model, tokens: model.text(tokens))

    def _compiled(self, tower: Callable[[Clip, Any], Any]) -> Callable[[Any], Any]:
        @jax.jit
        def embed(params: Params, batch: Any) -> Any:
            x_BP = tower(self.graph.merge(params), batch).astype(jnp.float32)
            return x_BP / jnp.linalg.norm(x_BP, axis=-1, keepdims=True)

        return functools.partial(embed, self.params)

    def _encode(
        self,
        tower: Callable[[Any], Any],
        rows: Iterator[np.ndarray],
        shape: tuple[int, ...],
        dtype: Any,
    ) -> np.ndarray:
        found = [np.zeros((0, self.config.text.projection_width), np.float32)]
        while True:
            batch, count = np.zeros((self.batch_size, *shape), dtype), 0
            for count, row in enumerate(_take(rows, self.batch_size), 1):
                batch[count - 1] = row
            if not count:
                return np.concatenate(found)
            found.append(np.asarray(tower(batch))[:count])

    @functools.cached_property
    def _tokenizer(self) -> Any:
        # Without files, transformers would make an empty tokenizer for a config of CLIP's.
        if not any((self.folder / name).is_file() for name in TOKENIZER_FILES):
            raise UserError(
                f"{self.folder} has no tokenizer, expected {' or '.join(TOKENIZER_FILES[:2])}: "
                "copy the tokenizer's files of this CLIP there"
            )
        return load_transformers_tokenizer(self.folder)

    def _tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, "N L"]:
        length, vocabulary = self.config.text.max_length, self.config.text.vocab_size
        tokens_NL = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            ids = self._tokenizer(text, truncation=True, max_length=length)["input_ids"]
            tokens_NL[row, : len(ids)] = ids
        if tokens_NL.max(initial=0) >= vocabulary:
            raise UserError(
                f"the tokenizer in {self.folder} gives the token {tokens_NL.max()}, but this CLIP "
                f"has {vocabulary} tokens: give the tokenizer that belongs to it"
            )
        return tokens_NL


def _take(rows: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    return (row for _, row in zip(range(count), rows, strict=False))


def load_clip(path: Path | str, *, batch_size: int = 64, quick_gelu: bool = True) -> LoadedClip:
    """A CLIP with both towers, in float32.

    Args:
      path: a directory as `CLIPModel.save_pretrained` writes it (config.json, model.safetensors or
        pytorch_model.bin) with its tokenizer; a directory of OpenCLIP's (open_clip_config.json); or
        a file of OpenCLIP's or OpenAI's weights, the tokenizer's files beside it.
      batch_size: images or texts per call of the model.
      quick_gelu: the activation of a file that comes without a config; OpenAI's is QuickGELU.

    Raises:
      UserError: the path has no such CLIP, or it wants other preprocessing than CLIP's.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the directory of a CLIP model")
    config, names, vision, text = read_clip(path, quick_gelu)
    folder = path if path.is_dir() else path.parent
    _check_preprocessing(folder, image_processor(config.vision))
    graph = abstract(lambda: Clip(config, nnx.Rngs(0)))
    found = clip_leaves(graph.shapes(), config, names, vision, text, path)
    params = {name: put_param(leaf, "float32") for name, leaf in found.items()}
    return LoadedClip(config, folder, graph, params, batch_size)


def _check_preprocessing(folder: Path, images: ImageProcessor) -> None:
    """UserError: the directory asks for preprocessing that is not CLIP's."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return
    given, known = read_json(file), images.settings()
    for key in CHECKED_SETTINGS:
        value = given.get(key, known[key])
        if key == "crop_size" and isinstance(value, int):
            value = {"height": value, "width": value}
        same = (
            np.allclose(value, known[key], atol=1e-4)
            if key.startswith("image_")
            else value == known[key]
        )
        if not same:
            raise UserError(
                f"{file} has {key} = {value!r}, expected CLIP's {known[key]!r}: give a CLIP with "
                "CLIP's own preprocessing"
            )
