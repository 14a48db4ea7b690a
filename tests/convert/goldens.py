"""Cases made by the original OpenFlamingo on torch: its weights, inputs and what came out."""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.convert.importing import Imported, import_state_dict
from flamingo_jax.convert.openflamingo import all_rows
from flamingo_jax.models.params import ModelGraph, Params, model_graph
from flamingo_jax.weights.views import Plan, make_plan
from tests import golden_root
from tests.openflamingo_labels import loss_weights

FOLDER = "openflamingo"
NAMES = sorted(path.parent.name for path in golden_root.find(FOLDER).glob("*/golden.npz"))
CASES = golden_root.each(NAMES, FOLDER)


@dataclass(frozen=True)
class Golden:
    name: str
    folder: Path
    arrays: dict[str, np.ndarray]
    imported: Imported
    graph: ModelGraph
    plan: Plan
    params: Params

    @property
    def whole(self) -> bool:
        """Not only the committed part."""
        return not self.folder.is_relative_to(golden_root.COMMITTED)

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """Rows, images and tokens of the largest batch: all are padded to it, and so one
        compilation serves them all."""
        tokens = [array.shape for name, array in self.arrays.items() if name.endswith("_lang_x")]
        images = [array.shape for name, array in self.arrays.items() if name.endswith("_vision_x")]
        prompt, answer = self.arrays["gen_lang_x"].shape[1], self.arrays["gen_greedy"].shape[1]
        rows, lengths = zip(*tokens, strict=True)
        return max(rows), max(shape[1] for shape in images), max(*lengths, prompt + answer)

    def batch(self, prefix: str) -> dict[str, np.ndarray]:
        """The inputs `prefix_*`, padded: images, tokens, segments, weights."""
        arrays = {k: self.arrays[f"{prefix}_{k}"] for k in ("vision_x", "lang_x", "attention_mask")}
        kind = "pair" if "laion" in prefix else "interleaved"
        ids = self.imported.ids
        images, tokens, segments = unpadded(arrays)
        weights = np.stack(
            [
                loss_weights(row, valid, kind, image=ids.image, end_of_chunk=ids.end_of_chunk)
                for row, valid in zip(tokens, segments == 1, strict=True)
            ]
        )
        num_rows, num_images, length = self.shape
        return {
            "images": pad(images, (num_rows, num_images)),
            "tokens": pad(tokens, (num_rows, length)),
            "segments": pad(segments, (num_rows, length)),
            "weights": pad(weights, (num_rows, length)),
        }

    @functools.cached_property
    def forward(self):
        return jax.jit(lambda params, *batch: self.graph.merge(params)(*batch))

    def logits(self, batch: dict[str, np.ndarray], params: Params | None = None) -> np.ndarray:
        inputs = batch["images"], batch["tokens"], batch["segments"]
        return np.asarray(self.forward(self.params if params is None else params, *inputs))


def unpadded(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """OpenFlamingo's layout → ours: colours last, int32."""
    images = np.moveaxis(arrays["vision_x"], 3, -1)
    return (
        images,
        arrays["lang_x"].astype(np.int32),
        arrays["attention_mask"].astype(np.int32),
    )


def pad(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    missing = [(0, n - m) for n, m in zip(shape, array.shape, strict=False)]
    return np.pad(array, missing + [(0, 0)] * (array.ndim - len(shape)))


@functools.cache
def load(name: str) -> Golden:
    folder = golden_root.find(f"{FOLDER}/{name}")
    weights = folder / "model.safetensors"
    imported = import_state_dict(weights if weights.is_file() else folder, folder / "config.json")
    graph = model_graph(imported.config)
    params = {p: jnp.asarray(leaf.read(np.float32)) for p, leaf in imported.leaves.items()}
    with np.load(folder / "golden.npz") as archive:
        arrays = dict(archive)
    rows = all_rows(imported.family, imported.config)
    plan = make_plan(graph.shapes(), rows, imported.config.locate)
    return Golden(name, folder, arrays, imported, graph, plan, params)


def sampled(array: np.ndarray) -> np.ndarray:
    """The entries that the goldens keep of a large array."""
    flat = array.reshape(-1)
    return flat if flat.size <= 1024 else flat[(np.arange(1024) * 7919) % flat.size]
