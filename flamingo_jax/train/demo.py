"""The digits demo, evaluated: a table, a plot and a picture of prompts."""

import dataclasses
import json
import math
import shutil
from contextlib import closing
from pathlib import Path

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate import demo_pictures, harness
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.evaluate.inference import model_of_run
from flamingo_jax.evaluate.results import Record, folder_name, read_lines
from flamingo_jax.files import write_text
from flamingo_jax.train.checkpoint import Checkpointer, check_frozen
from flamingo_jax.train.config import read_config
from flamingo_jax.train.fingerprint import fingerprints
from flamingo_jax.train.setup import set_up

SHOTS_SHOWN = (1, 2, 4)
SEED = 0


def evaluate(workdir: Path) -> Path:
    """Score the latest checkpoint; gives the path of results.json.

    Raises:
      UserError: `workdir` holds no run, or no checkpoint yet.
    """
    config_path = workdir / "config.json"
    if not config_path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json); train one there first")
    config = read_config(config_path)
    run = set_up(config)
    with closing(Checkpointer(workdir)) as checkpointer:
        restored = checkpointer.restore(run.state_like())
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet; train further first")
    state, facts = restored
    frozen = run.make_frozen()
    check_frozen(facts, fingerprints(frozen))
    model = model_of_run(run.graph, {**state.params, **frozen}, run.tokens, run.mesh)

    asked = config.evaluation
    split = {"split": asked.split}
    naming = FewShotConfig(
        tasks={"digits": split},
        shots=(0,),
        seeds=(SEED,),
        batch_size=asked.batch_size,
        round_length=1,  # all prompts of so many shots are equally long
    )
    names = {"digit_names": {**split, "num_prompts": asked.num_examples}}
    binding = dataclasses.replace(naming, tasks=names, shots=asked.shots)
    out = workdir / "few_shot"
    shutil.rmtree(out, ignore_errors=True)  # of an earlier checkpoint
    for part in (naming, binding):
        harness.evaluate(model, part, out)
    return write_results(workdir, out, asked.shots)


def write_results(workdir: Path, out: Path, shots: tuple[int, ...]) -> Path:
    """Print the table; write plot, picture and results.json; give the path of the last."""
    naming = _records(out, "digits", 0)
    binding = {count: _records(out, "digit_names", count) for count in shots}
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


def _records(out: Path, task: str, shots: int) -> list[Record]:
    folder = out / task / folder_name(shots, "random", SEED, "own")
    return list(read_lines(folder / "examples.jsonl"))


def accuracy(records: list[Record]) -> dict[str, float]:
    """Of records that are right or wrong, with its standard error and their number."""
    share = sum(record["score"] for record in records) / 100 / len(records)
    stderr = math.sqrt(share * (1 - share) / len(records))
    return {"accuracy": share, "stderr": stderr, "n": len(records)}
