"""Few-shot evaluation of a model that is being trained."""

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.command import neighbours_of
from flamingo_jax.evaluate.config import FewShotConfig, make_task
from flamingo_jax.evaluate.harness import evaluate
from flamingo_jax.evaluate.inference import model_of_run
from flamingo_jax.evaluate.plan import read, show
from flamingo_jax.models.params import Params
from flamingo_jax.parallel import multihost
from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.train.program import errors_prefixed
from flamingo_jax.train.setup import Run

# A setting as the evaluation's own messages name it; no file such as "config.json".
SETTING = re.compile(
    rf"\bconfig\.({'|'.join(field.name for field in dataclasses.fields(FewShotConfig))})\b"
)


@contextmanager
def in_training() -> Iterator[None]:
    """Errors inside name the evaluation's settings by their place in a training config."""
    try:
        yield
    except UserError as error:
        raise UserError(SETTING.sub(r"config.few_shot.\1", str(error))) from error


@in_training()
def check_few_shot(run: Run) -> None:
    """What an evaluation while training needs, before anything is trained.

    Raises:
      UserError: nothing to evaluate, data or a CLIP that is missing or at fault, or a mesh that
        does not fit the devices of this process.
    """
    every, config = run.config.evaluate_every, run.config.few_shot
    if not every:
        return
    if not config.tasks:
        raise UserError(
            f"config.evaluate_every is {every}, but config.few_shot.tasks names nothing to "
            "evaluate: give some, or leave evaluate_every at 0"
        )
    if jax.process_count() > 1:
        with errors_prefixed("config.few_shot.mesh"):
            make_mesh(config.mesh, jax.local_devices())
    neighbours_of(config)
    drawn = dataclasses.replace(config, demonstrations="random")
    for name, options in config.tasks.items():
        dataset = read(name, make_task(name, options), drawn, None)
        show(dataset, drawn, max(config.shots), config.seeds[0])


def delete_results_after(workdir: Path, step: int) -> None:
    """Forget evaluations of later steps, which a crash undid."""
    if multihost.is_lead_process():
        for folder in (workdir / "few_shot").glob("*"):
            if folder.name.isdecimal() and int(folder.name) > step:
                shutil.rmtree(folder)


@in_training()
def few_shot(
    run: Run, params: Params, workdir: Path, step: int, stopping: Callable[[], bool]
) -> dict[str, float]:
    """Scores by "few_shot/TASK/4-random-seed42"; their lines go to `workdir/few_shot/STEP`.

    Each of several processes asks its own devices, so each must hold the whole model.

    Raises:
      Stopped: as `stopping` asked for, on every process.
    """
    config, mesh = run.config.few_shot, run.mesh
    if jax.process_count() > 1:
        mesh = make_mesh(config.mesh, jax.local_devices())
        whole = {
            path: multihost_utils.process_allgather(x, tiled=True) for path, x in params.items()
        }
        params = {
            path: jax.device_put(whole[path], sharding)
            for path, sharding in run.graph.shardings(mesh).items()
        }
    model = model_of_run(run.graph, params, run.tokens, mesh)
    model = dataclasses.replace(model, facts={"hash": f"step {step}"})
    out = workdir / "few_shot" / str(step)
    made = evaluate(model, config, out, neighbours_of(config), stopping)
    return {f"few_shot/{name}": score for name, score in made.items() if score is not None}
