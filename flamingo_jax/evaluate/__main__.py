"""Evaluate a model.

python -m flamingo_jax.evaluate --model=DIR --config=configs/eval/openflamingo.py --output=OUT
    few-shot tasks; run it again to go on after an interruption; OUT/report.html shows the results
python -m flamingo_jax.evaluate --rescore=OUT [--mode=openflamingo]
    score the recorded answers again, without the model
python -m flamingo_jax.evaluate --report=OUT,OUT
    one page of several results, into the first
python -m flamingo_jax.evaluate --compare OUT OUT
    why two results differ, example by example
python -m flamingo_jax.evaluate --workdir=DIR [--config=configs/eval/digits.py]
    the digits demo: results.json, a plot and a picture of prompts into a run's directory
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from absl import flags

from flamingo_jax import cli
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.command import few_shot, table
from flamingo_jax.evaluate.compare import compare, directories
from flamingo_jax.evaluate.config import FewShotConfig, complete
from flamingo_jax.evaluate.metrics.vqa import Mode
from flamingo_jax.evaluate.report.page import write_report
from flamingo_jax.evaluate.scores import rescore
from flamingo_jax.parallel import multihost
from flamingo_jax.train import demo

MODEL = flags.DEFINE_string("model", None, "a model directory")
OUTPUT = flags.DEFINE_string("output", None, "where the results of a model go")
TASKS = flags.DEFINE_list("tasks", None, "some of the config's tasks; all unless given")
RESCORE = flags.DEFINE_string("rescore", None, "results to be scored again")
REPORT = flags.DEFINE_list("report", None, "results to be shown on one page")
MODE = flags.DEFINE_enum("mode", None, get_args(Mode), "of VQA accuracy, for --rescore")


def main(argv: Sequence[str]) -> None:
    if compared := directories(argv):
        print(compare(*compared).text())
        return
    config = None
    if any(arg.startswith("--config") for arg in argv):
        config = cli.parse_config(argv, FewShotConfig, complete)
    else:
        cli.parse_flags(argv)
    if RESCORE.value:
        print(table(rescore(Path(RESCORE.value), cast(Mode | None, MODE.value))))
    elif REPORT.value:
        outs = [Path(out) for out in REPORT.value]
        print(write_report(outs, outs[0] / "report.html"))
    elif MODEL.value:
        if config is None or not OUTPUT.value:
            raise UserError(
                "--model needs --config and --output, as in --config=configs/eval/openflamingo.py "
                "--output=runs/eval"
            )
        with multihost.initialized():
            made = few_shot(Path(MODEL.value), _chosen(config), Path(OUTPUT.value))
            if multihost.is_lead_process():
                print(table(made))
                if any(score is not None for score in made.values()):
                    out = Path(OUTPUT.value)
                    print(write_report([out], out / "report.html"))
    else:
        print(demo.evaluate(cli.workdir(), config and _chosen(config)))


def _chosen(config: FewShotConfig) -> FewShotConfig:
    if not TASKS.value:
        return config
    absent = [name for name in TASKS.value if name not in config.tasks]
    if absent:
        raise UserError(
            f"--tasks names {', '.join(absent)}; the config has {', '.join(config.tasks)}"
        )
    return dataclasses.replace(config, tasks={name: config.tasks[name] for name in TASKS.value})


if __name__ == "__main__":
    cli.run(main)
