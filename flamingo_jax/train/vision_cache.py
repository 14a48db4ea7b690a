"""A frozen vision encoder's patch tokens, kept on disk: each image is encoded once, in all epochs.

What is kept is found by the weights' fingerprints, the encoder's settings and the pixels that it
would see, so nothing stale is ever found, and whatever changes the pixels makes another image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.data.feature_store import KEY_BYTES, FeatureStore
from flamingo_jax.data.pipeline import Batches
from flamingo_jax.errors import UserError
from flamingo_jax.models.params import Params
from flamingo_jax.models.vision.clip import ClipVisionConfig
from flamingo_jax.parallel.sharding import batch_sharding, to_device
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.setup import Setup

VERSION = 1  # of what is kept
GIB = 2**30


def check_vision_cache(config: TrainConfig, trained: frozenset[str]) -> None:
    """UserError: `config.data.vision_cache` is set, and does not go with what is trained."""
    folder = config.data.vision_cache
    if not folder:
        return
    changing = sorted(path for path in trained if config.model.encoder.owns(path))
    if changing:
        raise UserError(
            f"config.data.vision_cache is set, but config.trainable trains the vision encoder "
            f"({changing[0]}), whose features change with every step: set one of them only"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"config.data.vision_cache is for one process, this run has {jax.process_count()}: "
            "leave it out, or run one process"
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"config.data.vision_cache {folder} cannot be made ({error.strerror}); choose another "
            "directory"
        ) from None


class VisionCache:
    """Puts batches on the devices with patch tokens instead of images.

    Tokens that are on disk are read. The other images are encoded on the devices, some at a time in
    a program of one shape, ahead of the step that needs them; they are written when the next batch
    is placed, so that nobody waits for the devices.

    Args:
      frozen: parameters, those of the vision encoder among them.
      fingerprints: of `frozen`.

    Attributes:
      counters: how many images were encoded, and of how many the tokens were on disk.
    """

    def __init__(
        self, config: TrainConfig, setup: Setup, frozen: Params, fingerprints: Mapping[str, str]
    ):
        model = config.model
        self._encoded = self._found = 0
        self.counters: dict[str, Callable[[], int]] = {
            "images_encoded": lambda: self._encoded,
            "images_found": lambda: self._found,
        }
        self._mesh = setup.mesh
        self._shape = (
            1,
            model.encoder.num_patches,
            model.encoder.width,
        )
        self._dtype = jnp.dtype(model.dtype)
        self._size = min(stream.batch_size for stream in config.streams.values())
        self._weights = {p: x for p, x in frozen.items() if model.encoder.owns(p)}
        self._fill = _program(setup, model.encoder)
        self._unwritten: list[tuple[list[bytes], jax.Array]] = []
        facts = {
            "version": VERSION,
            "weights": {p: fingerprints[p] for p in self._weights},
            "vision": {k: v for k, v in dataclasses.asdict(model.encoder).items() if k != "kind"},
            "dtype": model.dtype,
        }
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self._store = FeatureStore(
            Path(config.data.vision_cache) / name,
            record_bytes=int(np.prod(self._shape)) * self._dtype.itemsize,
            max_bytes=int(config.data.vision_cache_gib * GIB),
        )

    def put(self, batches: Batches) -> Any:
        """What `to_device` does, with `patches` (B, T, F, N, D) instead of `images`."""
        self._write()
        return {name: self._place(rows) for name, rows in batches.items()}

    def _place(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        images = rows["images"]
        patches = np.zeros((*images.shape[:2], *self._shape), self._dtype)
        missing: dict[bytes, list[tuple[int, ...]]] = {}  # with where in the batch they are
        for place in np.ndindex(images.shape[:2]):
            pixels = np.ascontiguousarray(images[place])
            key = hashlib.blake2b(pixels.data, digest_size=KEY_BYTES).digest()
            if key in missing or not self._store.read(key, patches[place]):
                missing.setdefault(key, []).append(place)
            else:
                self._found += 1
        others = {name: value for name, value in rows.items() if name != "images"}
        placed = to_device({"": {**others, "features": patches}}, self._mesh)[""]
        keys = list(missing)
        for first in range(0, len(keys), self._size):
            some = {key: missing[key] for key in keys[first : first + self._size]}
            placed["features"] = self._encode(images, some, placed["features"])
        return placed

    def _encode(
        self, images: np.ndarray, places: Mapping[bytes, list[tuple[int, ...]]], patches: jax.Array
    ) -> jax.Array:
        """The patches with those of some images filled in."""
        pixels = np.zeros((self._size, 1, *images.shape[2:]), images.dtype)
        source = np.full(images.shape[:2], -1, np.int32)
        for number, at in enumerate(places.values()):
            pixels[number, 0] = images[at[0]]
            for place in at:
                source[place] = number
        placed = to_device({"": {"pixels": pixels, "source": source}}, self._mesh)[""]
        with jax.set_mesh(self._mesh):
            patches, encoded = self._fill(
                self._weights, patches, placed["pixels"], placed["source"]
            )
        encoded.copy_to_host_async()
        self._unwritten.append((list(places), encoded))
        self._encoded += len(places)
        return patches

    def _write(self) -> None:
        for keys, encoded in self._unwritten:
            for key, array in zip(keys, np.asarray(encoded), strict=False):  # then padding
                self._store.write(key, array)
        self._unwritten.clear()

    def close(self) -> None:
        try:
            self._write()
        finally:
            self._store.close()


def _program(setup: Setup, encoder: ClipVisionConfig) -> Any:
    """(weights, patches (B, T, F, N, D), images (C, 1, F, H, W, 3), source (B, T)) → the patches
    with image i's where `source` is i, and those of all images (C, F, N, D)."""
    shapes, graph = setup.graph.shapes(), setup.graph.placed(setup.mesh)
    others = {path: leaf for path, leaf in shapes.items() if not encoder.owns(path)}

    def fill(weights, patches, images, source):
        # The rest of the model is not there, and not used.
        encoded = graph.merge(others, weights).encode([images])[0][:, 0]
        where = source[..., None, None, None]
        return jnp.where(where < 0, patches, encoded[source]), encoded

    rows = batch_sharding(setup.mesh)
    return jax.jit(fill, out_shardings=(rows, rows), donate_argnums=1)
