"""Cases made by the original OpenFlamingo on torch: its weights, inputs and what came out.

`tests/golden/mpt` holds a part of one case, so that a fresh clone proves parity; the others are
used where they are at hand.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.convert.importing import Imported, import_state_dict
from flamingo_jax.convert.openflamingo import all_rows
from flamingo_jax.models.params import ModelGraph, Params, model_graph
from flamingo_jax.weights.views import Plan, make_plan
from tests.openflamingo_labels import loss_weights

COMMITTED = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "openflamingo"
NAMES = ["mpt", "mosaic_gpt", "neox", "pythia", "opt", "llama"]
ROWS, IMAGES, LENGTH = 4, 3, 36  # every batch is padded to this: one compilation serves them all


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
        return self.folder.parent == SHARED

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
        return {
            "images": pad(images, (ROWS, IMAGES)),
            "tokens": pad(tokens, (ROWS, LENGTH)),
            "segments": pad(segments, (ROWS, LENGTH)),
            "weights": pad(weights, (ROWS, LENGTH)),
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


def load_or_skip(name: str) -> Golden:
    """The test is skipped only where no case but the committed one is at hand."""
    if not SHARED.is_dir() and not (COMMITTED / name).is_dir():
        pytest.skip(f"the {name} goldens are not at hand")
    return load(name)


@functools.cache
def load(name: str) -> Golden:
    folder = (SHARED if SHARED.is_dir() else COMMITTED) / name
    weights = folder / "model.safetensors"
    imported = import_state_dict(weights if weights.is_file() else folder, folder / "config.json")
    graph = model_graph(imported.config)
    params = {p: jnp.asarray(leaf.read(np.float32)) for p, leaf in imported.leaves.items()}
    with np.load(folder / "golden.npz") as archive:
        arrays = dict(archive)
    plan = make_plan(graph.shapes(), imported.config, all_rows(imported.family, imported.config))
    return Golden(name, folder, arrays, imported, graph, plan, params)


def sampled(array: np.ndarray) -> np.ndarray:
    """The entries that the goldens keep of a large array."""
    flat = array.reshape(-1)
    return flat if flat.size <= 1024 else flat[(np.arange(1024) * 7919) % flat.size]
