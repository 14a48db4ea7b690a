"""Few-shot evaluation of a model that is being trained."""

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flamingo_jax.errors import Stopped, UserError
from flamingo_jax.evaluate.command import neighbours_of
from flamingo_jax.evaluate.config import FewShotConfig, make_task
from flamingo_jax.evaluate.harness import evaluate
from flamingo_jax.evaluate.plan import read, show
from flamingo_jax.generate.base import model_of_run
from flamingo_jax.models.params import Params
from flamingo_jax.parallel import multihost
from flamingo_jax.parallel.mesh import make_mesh
from flamingo_jax.text.tokenizer import TextTokenizer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.setup import Setup, errors_prefixed
from flamingo_jax.train.signals import StopOnSignal

# A setting as the evaluation's own messages name it; no file such as "config.json".
SETTING = re.compile(
    rf"\bconfig\.({'|'.join(field.name for field in dataclasses.fields(FewShotConfig))})\b"
)


@contextmanager
def in_training() -> Iterator[None]:
    """Makes errors inside name the evaluation's settings by their place in a training config."""
    try:
        yield
    except UserError as error:
        raise UserError(SETTING.sub(r"config.few_shot.\1", str(error))) from error


class FewShot:
    """Evaluates a model while it trains; the lines of its answers go to `workdir/few_shot/STEP`.

    Args:
      signals: one of them ends an evaluation.

    Raises:
      UserError: nothing to evaluate, data or a CLIP that is missing or at fault, or a mesh that
        does not fit the devices of this process.
    """

    def __init__(
        self,
        config: TrainConfig,
        setup: Setup,
        tokens: TextTokenizer,
        workdir: Path,
        signals: StopOnSignal,
    ):
        self._config = config.few_shot
        self._graph, self._mesh = setup.graph, setup.mesh
        self._tokens = tokens
        self._folder = workdir / "few_shot"
        self._signals = signals
        if config.evaluate_every:
            check_few_shot(config.few_shot, config.evaluate_every)

    @in_training()
    def scores(self, params: Params, step: int) -> dict[str, float] | None:
        """Returns scores by "few_shot/TASK/4-random-seed42"; None, on every process, where a signal
        ended the evaluation.

        Each of several processes asks its own devices, so each must hold the whole model.
        """
        config, mesh = self._config, self._mesh
        if jax.process_count() > 1:
            mesh = make_mesh(config.mesh, jax.local_devices())
            whole = {
                path: multihost_utils.process_allgather(x, tiled=True) for path, x in params.items()
            }
            params = {
                path: jax.device_put(whole[path], sharding)
                for path, sharding in self._graph.shardings(mesh).items()
            }
        model = model_of_run(self._graph, params, self._tokens, mesh)
        model = dataclasses.replace(model, facts={"hash": f"step {step}"})
        neighbours, out = neighbours_of(config), self._folder / str(step)
        try:
            made = evaluate(model, config, out, neighbours, lambda: bool(self._signals.received))
        except Stopped:
            multihost.print0(f"the evaluation of step {step} was left for the next start")
            return None
        return {f"few_shot/{name}": score for name, score in made.items() if score is not None}


@in_training()
def check_few_shot(config: FewShotConfig, every: int) -> None:
    """Checks what an evaluation every so many steps needs, before anything is trained."""
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
    """Deletes evaluations of later steps, which a crash undid."""
    if multihost.is_lead_process():
        for folder in (workdir / "few_shot").glob("*"):
            if folder.name.isdecimal() and int(folder.name) > step:
                shutil.rmtree(folder)
