"""The digits demo, evaluated: a table, a plot and a picture of prompts."""

import dataclasses
import json
import math
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate import demo_pictures, harness
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.evaluate.results import Record, folder_name, read_lines
from flamingo_jax.files import write_text
from flamingo_jax.generate.base import Model, model_of_run
from flamingo_jax.schema import build
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train.checkpoint import Checkpointer, check_frozen
from flamingo_jax.train.config import read_config
from flamingo_jax.train.fingerprint import fingerprints
from flamingo_jax.train.initial_weights import InitialWeights
from flamingo_jax.train.setup import set_up

NAMING, BINDING = "digits", "digit_names"
SETTINGS: dict[str, Any] = {  # of a few-shot evaluation; `configs/eval/digits.py` gives them
    # Choose by the split "validation", report "held_out".
    "tasks": {
        NAMING: {"split": "held_out"},  # without demonstrations
        BINDING: {"split": "held_out", "num_prompts": 2000},
    },
    "shots": (0, 1, 2, 4, 8),  # of each class
    "seeds": (0,),
    "batch_size": 100,
    "round_length": 1,  # all prompts of so many shots are equally long
}
SHOTS_SHOWN = (1, 2, 4)


def evaluate(workdir: Path, config: FewShotConfig | None = None) -> Path:
    """Scores the latest checkpoint of a run; returns the path of results.json.

    Args:
      workdir: of the run.
      config: with the tasks of `SETTINGS`; default: `SETTINGS`.

    Raises:
      UserError: `workdir` holds no run, or no checkpoint yet; `config` has other tasks.
    """
    config = config or build(FewShotConfig, SETTINGS)
    if set(config.tasks) != {NAMING, BINDING} or len(config.seeds) != 1:
        tasks = ", ".join(config.tasks) or "(none)"
        raise UserError(
            f"the config has the tasks {tasks} and {len(config.seeds)} "
            f"seed(s), but --workdir is for the digits demo, of {NAMING}, {BINDING} and one seed: "
            "leave --config out, or give --config=configs/eval/digits.py"
        )
    model = _latest_model(workdir)
    naming = dataclasses.replace(config, tasks={NAMING: config.tasks[NAMING]}, shots=(0,))
    binding = dataclasses.replace(config, tasks={BINDING: config.tasks[BINDING]})
    out = workdir / "few_shot"
    shutil.rmtree(out, ignore_errors=True)  # of an earlier checkpoint
    for part in (naming, binding):
        harness.evaluate(model, part, out)
    return write_report(workdir, out, config)


def _latest_model(workdir: Path) -> Model:
    config_path = workdir / "config.json"
    if not config_path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json); train one there first")
    config = read_config(config_path)
    setup = set_up(config)
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    initial = InitialWeights(setup, config.seed, config.init_from)
    with closing(Checkpointer(workdir)) as checkpointer:
        restored = checkpointer.restore(setup.state_shapes)
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet; train further first")
    state, facts = restored
    frozen = initial.frozen()
    check_frozen(facts, fingerprints(frozen))
    return model_of_run(setup.graph, {**state.params, **frozen}, tokens, setup.mesh)


def write_report(workdir: Path, out: Path, config: FewShotConfig) -> Path:
    """Prints the table; writes plot, picture and results.json; returns the path of the last."""
    naming = _records(out, NAMING, 0, config)
    binding = {count: _records(out, BINDING, count, config) for count in config.shots}
    named, bound = accuracy(naming), {count: accuracy(r) for count, r in binding.items()}
    print(demo_pictures.table(named, bound))
    demo_pictures.plot_binding(bound, workdir / "binding.png")
    shown = [count for count in SHOTS_SHOWN if count in binding]
    wrong = [record for count in shown for record in binding[count] if not record["score"]]
    prompts = [*naming[:1], *(binding[count][i] for i in (0, 1) for count in shown), *wrong[-1:]]
    demo_pictures.draw_prompts(prompts, workdir / "prompts.png")
    results = {
        "naming": {"accuracy": named["accuracy"], "n": named["n"]},
        "binding": {str(count): result for count, result in bound.items()},
    }
    path = workdir / "results.json"
    write_text(path, json.dumps(results, indent=2) + "\n")
    for name in ("binding.png", "prompts.png"):
        print(workdir / name)
    return path


def _records(out: Path, task: str, shots: int, config: FewShotConfig) -> list[Record]:
    folder = folder_name(shots, config.demonstrations, config.seeds[0], config.context_images)
    return list(read_lines(out / task / folder / "examples.jsonl"))


def accuracy(records: list[Record]) -> dict[str, float]:
    """Returns the share of records that are right, its standard error and their number."""
    share = sum(record["score"] for record in records) / 100 / len(records)
    stderr = math.sqrt(share * (1 - share) / len(records))
    return {"accuracy": share, "stderr": stderr, "n": len(records)}
