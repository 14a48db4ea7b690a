"""The command: on several processes, with its mistakes, and during training."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from absl import flags

from flamingo_jax import train
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate import __main__ as command
from flamingo_jax.evaluate.command import few_shot
from flamingo_jax.schema import build
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.few_shot import FewShot
from flamingo_jax.train.metrics import read_metrics
from flamingo_jax.train.setup import set_up
from flamingo_jax.train.signals import StopOnSignal
from tests import tiny
from tests.evaluate.conftest import answers, lines, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(fake_root, model_folder, settings, tmp_path):
    """`evaluate` with flags, on a config file that has these settings; gives the output."""

    def call(*arguments, tasks=("hateful_memes",), **changes):
        path = write_config(tmp_path, settings(*tasks, **{"shots": (0,), **changes}))
        out = tmp_path / "out"
        flags.FLAGS.unparse_flags()
        given = [f"--model={model_folder}", f"--config={path}", f"--output={out}", *arguments]
        command.main(["evaluate", *given])
        return out

    yield call
    flags.FLAGS.unparse_flags()
    for name in ("model", "output", "tasks", "rescore", "report", "mode"):
        flags.FLAGS[name].value = None


def test_the_command_prints_and_keeps_what_it_finds(run, capsys):
    out = run("--config.shots=(0, 2)", "--tasks=hateful_memes", tasks=("hateful_memes", "imagenet"))
    assert sorted(answers(out)) == [
        "hateful_memes/0-random-seed42",
        "hateful_memes/2-random-seed42",
    ]
    printed = capsys.readouterr().out
    for name, (score, _) in answers(out).items():
        assert f"{name}  {score:8.2f}" in printed
    assert (out / "report.html").read_text().startswith("<!")
    flags.FLAGS.unparse_flags()
    command.main(["evaluate", f"--rescore={out}"])
    assert capsys.readouterr().out.count("hateful_memes/") == 2
    command.main(["evaluate", "--compare", str(out), str(out)])
    assert "settings that differ:\n  none" in capsys.readouterr().out


def test_mistakes_are_told_in_one_line(run, model_folder, tmp_path):
    with pytest.raises(UserError, match="--tasks names coco; the config has hateful_memes"):
        run("--tasks=coco")
    flags.FLAGS["tasks"].value = None
    with pytest.raises(UserError, match="expected some of: coco, flickr30k"):
        run("--config.tasks={'kokko': {}}")
    with pytest.raises(UserError, match=r"unknown config key 'config\.tasks\..*foldr'"):
        run("--config.tasks.hateful_memes.foldr=x")
    with pytest.raises(UserError, match="coco has no choices to classify among"):
        run("--config.tasks.coco.max_new_tokens=0", tasks=("coco",))
    with pytest.raises(UserError, match=r"config\.mesh: mesh data=3 .* does not fit 8 devices"):
        run("--config.mesh.data=3")
    place = r"--config\.data_root and --config\.tasks\.NAME\.folder"
    with pytest.raises(UserError, match=rf"dev\.jsonl does not exist: put .* with {place}"):
        run("--config.data_root=nowhere")
    with pytest.raises(UserError, match="rices_model is not given"):
        run("--config.demonstrations=rices")
    flags.FLAGS.unparse_flags()
    with pytest.raises(UserError, match="--model needs --config and --output"):
        command.main(["evaluate", f"--model={model_folder}"])


def test_what_is_wrong_is_told_before_the_model_is_opened(run, monkeypatch):
    def opened(*_):
        pytest.fail("a model was opened")

    monkeypatch.setattr("flamingo_jax.evaluate.command.open_model", opened)
    with pytest.raises(UserError, match=r"config: shots is \(\), expected one or more numbers"):
        run("--config.shots=()")
    with pytest.raises(UserError, match=r"config: seeds is \(\), expected one or more numbers"):
        run("--config.seeds=()")
    with pytest.raises(UserError, match="config: num_samples is -1, expected at least 0"):
        run("--config.num_samples=-1")
    for size in (-1, 0):
        with pytest.raises(UserError, match=f"config: query_set_size is {size}, expected at least"):
            run("--config.sampling=openflamingo", f"--config.query_set_size={size}")
    with pytest.raises(UserError, match="nowhere does not exist: give the directory of a CLIP"):
        run("--config.demonstrations=rices", "--config.rices_model=nowhere")
    with pytest.raises(UserError, match=r"config\.tasks is empty.*name some of coco"):
        run(tasks=())


def test_a_killed_evaluation_goes_on(model_folder, settings, tmp_path):
    config = settings("coco", shots=(0,), seeds=tuple(range(8)), batch_size=1)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    given = f"--model={model_folder}", f"--config={write_config(tmp_path, config)}"
    process = subprocess.Popen(
        [sys.executable, "-m", "flamingo_jax.evaluate", *given, f"--output={killed}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    part = killed / "coco/0-random-seed1/parts/process-0.jsonl"
    while not (part.exists() and part.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    left = answers(killed)
    assert 0 < len(left) < 8
    few_shot(model_folder, config, killed)
    assert {name: answers(killed)[name] for name in left} == left
    few_shot(model_folder, config, whole)
    assert answers(killed) == answers(whole)
    assert len({json.dumps(examples) for _, examples in answers(whole).values()}) == 8


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(config, workdir) of a run that was evaluated twice."""
    values = tiny.get_config().to_dict()
    values |= {
        "num_steps": 4,
        "checkpoint_every": 2,
        "evaluate_every": 2,
        "few_shot": {"tasks": {"digits": {}}, "shots": (0, 1), "num_samples": 10},
    }
    config, workdir = build(TrainConfig, values), tmp_path_factory.mktemp("evaluated")
    train.run(config, workdir, jax.devices()[:1])
    return config, workdir


def test_a_model_is_evaluated_while_it_trains(evaluated):
    workdir = evaluated[1]
    metrics = {m["step"]: m for m in read_metrics(workdir)}
    names = {f"few_shot/digits/{shots}-random-seed42" for shots in (0, 1)}
    assert names <= metrics[2].keys()
    assert names <= metrics[4].keys()
    assert not names & metrics[3].keys()
    records = lines(workdir / "few_shot/4/digits/0-random-seed42/examples.jsonl")
    correct = [record["answer"] in record["references"] for record in records]
    assert metrics[4]["few_shot/digits/0-random-seed42"] == 10 * sum(correct)
    manifest = json.loads((workdir / "few_shot/4/manifest.json").read_text())
    assert manifest["model"] == {"hash": "step 4"}


def test_an_evaluation_that_fails_costs_no_step_and_is_made_up_for(
    evaluated, tmp_path, monkeypatch
):
    config, whole = evaluated

    def fail(*_):
        raise UserError("the disk with the data is gone")

    with monkeypatch.context() as patch:
        patch.setattr(FewShot, "scores", fail)
        with pytest.raises(UserError, match="the disk"):
            train.run(config, tmp_path, jax.devices()[:1])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    (tmp_path / "few_shot/4").mkdir(parents=True)  # of steps that a crash undid
    (tmp_path / "few_shot/4/manifest.json").write_text("{}")
    train.run(config, tmp_path, jax.devices()[:1])
    assert (tmp_path / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_settings_that_changed_within_an_evaluation_are_named(evaluated):
    config, workdir = evaluated
    settings = dataclasses.replace(config.few_shot, num_samples=11)
    config = dataclasses.replace(config, few_shot=settings)
    tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
    setup = set_up(config, jax.devices()[:1])
    evaluation = FewShot(config, setup, tokens, workdir, StopOnSignal())
    match = r"few_shot/4 holds results with other config\.few_shot\.num_samples: give those again"
    with pytest.raises(UserError, match=match):
        evaluation.scores({}, 4)


BAD_SETTINGS = {
    "nothing to evaluate": ({"tasks": {}}, "config.evaluate_every is 2, but config.few_shot.tasks"),
    "data that is not there": (
        {"tasks": {"coco": {}}},
        r"nowhere/coco/.* with --config\.few_shot\.data_root and "
        r"--config\.few_shot\.tasks\.NAME\.folder",
    ),
    "too many shots": (
        {"tasks": {"digits": {}}, "shots": (5000,)},
        r"5000 demonstrations .* lower config\.few_shot\.shots",
    ),
    "an option that does not exist": (
        {"tasks": {"digits": {"splitt": "validation"}}},
        r"config\.few_shot: unknown config key 'tasks\.digits\.splitt'; did you mean 'split'",
    ),
    "no CLIP": (
        {"tasks": {"digits": {}}, "demonstrations": "rices", "rices_model": "nowhere"},
        "nowhere does not exist",
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_what_cannot_be_evaluated_is_told_before_training(name, tmp_path):
    settings, message = BAD_SETTINGS[name]
    few_shot = {"shots": (0, 1), "data_root": "nowhere", **settings}
    values = tiny.get_config().to_dict() | {"evaluate_every": 2, "few_shot": few_shot}
    with pytest.raises(UserError, match=message):
        train.run(build(TrainConfig, values), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()
