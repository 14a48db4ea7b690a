"""The digits demo, evaluated: a table, a plot and a picture of prompts."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax

from flamingo_jax.config import Config
from flamingo_jax.errors import UserError
from flamingo_jax.evaluation import digits, report
from flamingo_jax.schema import build
from flamingo_jax.training.checkpoint import Checkpointer, state_shapes
from flamingo_jax.training.setup import set_up

SHOTS_SHOWN = (1, 2, 4)


def evaluate(workdir: Path) -> Path:
    """Score the latest checkpoint; gives the path of results.json.

    Raises:
      UserError: `workdir` holds no run, or no checkpoint yet.
    """
    config_path = workdir / "config.json"
    if not config_path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json); train one there first")
    config = build(Config, json.loads(config_path.read_text()))
    run = set_up(config)
    checkpointer = Checkpointer(workdir, keep=config.keep_checkpoints)
    if checkpointer.latest_step is None:
        raise UserError(f"{workdir} holds no checkpoint yet; train further first")
    with jax.set_mesh(run.mesh):
        state, frozen = run.make_state()
        state, _ = checkpointer.restore(state_shapes(state, run.state_shardings))
        checkpointer.close()
        naming, binding = digits.evaluate(
            run.graph,
            {**state.params, **frozen},
            run.tokens,
            config.evaluation,
            image_size=config.model.vision.image_size,
        )
    return write_results(workdir, naming, binding)


def write_results(
    workdir: Path,
    naming: Sequence[digits.Answered],
    binding: dict[int, list[digits.Answered]],
) -> Path:
    """Print the table; write plot, picture and results.json; give the path of the last."""
    named = digits.score(naming)
    bound = {shots: digits.score(answers) for shots, answers in binding.items()}
    print(report.table(named, bound))
    report.plot_binding(bound, workdir / "binding.png")
    shots_shown = [shots for shots in SHOTS_SHOWN if shots in binding]
    wrong = [answer for shots in shots_shown for answer in binding[shots] if not answer.correct]
    shown = [*naming[:1], *(binding[shots][i] for i in (0, 1) for shots in shots_shown)]
    report.draw_prompts(shown + wrong[-1:], workdir / "prompts.png")
    results = {
        "naming": {"accuracy": named["accuracy"], "n": named["n"]},
        "binding": {str(shots): result for shots, result in bound.items()},
    }
    path = workdir / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    for name in ("binding.png", "prompts.png"):
        print(workdir / name)
    return path
