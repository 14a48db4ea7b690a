"""Few-shot evaluation of a model that is being trained."""

import dataclasses
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from flamingo_jax.evaluation.command import neighbours_of
from flamingo_jax.evaluation.harness import evaluate
from flamingo_jax.evaluation.inference import model_of_run
from flamingo_jax.models.params import Params
from flamingo_jax.training.setup import Run
from flamingo_jax.training.sharding import make_mesh, parameter_spec


def few_shot(run: Run, params: Params, workdir: Path, step: int) -> dict[str, float]:
    """Scores by "few_shot/TASK/4-random-seed42"; their lines go to `workdir/few_shot/STEP`.

    Each of several processes asks its own devices, so each must hold the whole model.
    """
    config, mesh = run.config.few_shot, run.mesh
    if jax.process_count() > 1:
        mesh = make_mesh(config.mesh, jax.local_devices())
        whole = {
            path: multihost_utils.process_allgather(x, tiled=True) for path, x in params.items()
        }
        params = {
            path: jax.device_put(x, NamedSharding(mesh, parameter_spec(path, x.shape, mesh)))
            for path, x in whole.items()
        }
    model = model_of_run(run.graph, params, run.tokens, mesh)
    model = dataclasses.replace(model, facts={"hash": f"step {step}"})
    out = workdir / "few_shot" / str(step)
    made = evaluate(model, config, out, neighbours_of(config))
    return {f"few_shot/{name}": score for name, score in made.items() if score is not None}
