"""What `python -m flamingo_jax.evaluate` does with a model directory."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from flamingo_jax.data.records import BadRecordError
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate import results, sampling
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.evaluate.harness import evaluate
from flamingo_jax.evaluate.pictures import Pictures
from flamingo_jax.evaluate.plan import Neighbours
from flamingo_jax.evaluate.tasks import TASKS, DataErrors, Example, Task
from flamingo_jax.generate.base import Model
from flamingo_jax.generate.loading import load
from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.similarity.clip import LoadedClip, load_clip
from flamingo_jax.similarity.retrieval import damaged, image_features, top_k


def open_model(
    folder: Path, config: FewShotConfig, devices: list[jax.Device] | None = None
) -> Model:
    """A model directory on these devices (default: all of this process).

    Raises:
      UserError: no model directory, or a mesh that does not fit the devices.
    """
    try:
        mesh = make_mesh(config.mesh, devices or jax.local_devices())
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None
    loaded = load(folder, mesh, config.compat or None)
    facts = {"path": str(folder)}
    if jax.process_index() == 0:
        weights = sorted(folder.glob("*.safetensors"))
        facts["hash"] = results.hash_of([folder / "config.json", *weights])
    return dataclasses.replace(loaded, facts=facts)


def few_shot(folder: Path, config: FewShotConfig, out: Path) -> dict[str, float | None]:
    """Evaluate a model directory; see `harness.evaluate`. UserError too: no task to evaluate."""
    if not config.tasks:
        raise UserError(
            "config.tasks is empty, so there is nothing to evaluate: name some of "
            f"{', '.join(TASKS)}, as in --config.tasks=\"{{'coco': {{}}}}\""
        )
    neighbours = neighbours_of(config)  # first: a wrong path is told before the model is loaded
    return evaluate(open_model(folder, config), config, out, neighbours)


def neighbours_of(config: FewShotConfig) -> Neighbours | None:
    """What RICES needs; None: demonstrations are drawn. UserError: no CLIP in `rices_model`."""
    if config.demonstrations == "random":
        return None
    return similar_images(load_clip(config.rices_model), Path(config.feature_cache))


def similar_images(clip: LoadedClip, cache: Path) -> Neighbours:
    """RICES by a CLIP, whose features are kept in `cache`."""

    def neighbours(
        task: Task,
        data: Path,
        queries: Sequence[Example],
        pool: Sequence[Example],
        k: int,
        problems: DataErrors,
    ) -> dict[str, np.ndarray]:
        files = {*task.files("train"), *task.files("test")}
        prefix = results.hash_of([task.path(data, name) for name in sorted(files)])
        pictures = Pictures(task, data, clip.images, kept=1)

        def picture(name: str) -> Image.Image | None:
            image = name.removeprefix(prefix)
            try:
                return Image.fromarray(pictures.pixels(image))
            except BadRecordError as error:
                # An error before hours of encoding; where faults are skipped, they are counted
                # below, also those of features that were found.
                DataErrors(problems.on_error).found("unreadable image", f"{data / image}: {error}")
                return None

        def features(examples: Sequence[Example]) -> np.ndarray:
            names = [f"{prefix}{example.image}" for example in examples]
            return on_lead_process_first(lambda: image_features(clip, names, picture, cache))

        wanted, kept = features(queries), features(pool)
        lost = damaged(kept)
        for i in lost:
            problems.found("unreadable image", str(pool[i].image))
        asked = np.delete(np.arange(len(queries)), damaged(wanted)).tolist()
        sound = np.delete(np.arange(len(pool)), lost)
        sampling.check_pool(len(sound), k)
        # A mapped file is copied only where it must be.
        found = sound[top_k(wanted[asked], kept[sound] if lost else kept, k)]
        return {queries[i].id: row for i, row in zip(asked, found, strict=True)}

    return neighbours


def on_lead_process_first(make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives. Process 0 calls it before the others do, who find the file it wrote."""
    if jax.process_count() == 1:
        return make()
    made = make() if jax.process_index() == 0 else None
    multihost_utils.sync_global_devices("features")
    return make() if made is None else made


def table(made: Mapping[str, float | None]) -> str:
    """The scores as plain text."""
    width = max(map(len, made))
    return "\n".join(
        f"{name:{width}}  {'no public answers' if score is None else f'{score:8.2f}'}"
        for name, score in made.items()
    )
