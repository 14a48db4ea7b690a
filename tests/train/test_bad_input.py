"""Mistakes of the user: one clear line each, and nothing written."""

import sys

import pytest

from flamingo_jax import cli
from flamingo_jax.schema import build, dump
from flamingo_jax.train.__main__ import main
from flamingo_jax.train.checkpoint import check_same_run
from flamingo_jax.train.config import TrainConfig
from tests import tiny

BAD_INPUT = {
    "an unknown key": (
        ["--config.optimizer.learning_rat=1"],
        "unknown config key 'config.optimizer.learning_rat'; did you mean 'learning_rate'?",
    ),
    "an unknown option of a source": (
        ["--config.streams.interleaved.options.way=3"],
        "unknown config key 'config.streams.interleaved.options.way'; did you mean 'ways'?",
    ),
    "an option that its source refuses": (
        ["--config.streams.interleaved.options.ways=30"],
        "config.streams.interleaved.options: ways is 30, it must be between 1 and 10",
    ),
    "a value of the wrong type": (["--config.num_steps=many"], "num_steps=many"),
    "a choice that does not exist": (
        ["--config.optimizer.schedule=step"],
        "config.optimizer.schedule is 'step', expected one of: 'constant', 'linear', 'cosine'",
    ),
    "a pattern that matches nothing": (
        ["--config.trainable=('xattn',)"],
        "config.trainable: pattern 'xattn' matches no parameter; parameters begin with: ",
    ),
    "batches that do not divide": (
        ["--config.streams.pairs.batch_size=9"],
        "config.streams.pairs.batch_size is 9, which does not divide by 8 devices",
    ),
    "a mesh that does not fit": (["--config.mesh.data=3"], "does not fit 8 devices"),
    "heads that do not divide by the mesh": (
        ["--config.mesh.tensor=4"],
        "config.mesh.tensor is 4, which does not divide config.model.encoder.num_heads 2",
    ),
    "a text longer than the learned positions": (
        ["--config.model.decoder.position=learned", "--config.model.decoder.max_length=10"],
        "config.streams.interleaved.text_length: text of 14 tokens is longer than the 10 learned",
    ),
    "more images than embeddings": (
        ["--config.model.connector.max_media=3"],
        "config.streams.interleaved.num_images: 4 media given, the resampler has embeddings for 3",
    ),
    "no checkpoint is kept": (
        ["--config.keep_checkpoints=0"],
        "config: keep_checkpoints is 0, it must be at least 1",
    ),
    "checkpoints at a negative interval": (
        ["--config.keep_every=-1"],
        "config: keep_every is -1, it must be at least 0",
    ),
    "evaluations at a negative interval": (
        ["--config.evaluate_every=-1"],
        "config: evaluate_every is -1, it must be at least 0",
    ),
    "a negative time": (
        ["--config.watchdog_seconds=-0.5"],
        "config: watchdog_seconds is -0.5, it must be at least 0",
    ),
    "a time that is none": (
        ["--config.watchdog_seconds=nan"],
        "config: watchdog_seconds is nan, it must be at least 0",
    ),
    "a stray word": (["fast"], "unexpected argument 'fast'; every setting is a --flag=value"),
    "an unknown flag": (["--workdirr=x"], "Unknown command line flag 'workdirr'"),
    "no such config": (["--config=configs/digit.py"], "digits.py"),
    "a directory as config": (["--config=configs"], "configs is a directory; configs holds: "),
    "no such model directory": (
        ["--config.init_from=nowhere"],
        "nowhere is no model directory",
    ),
    "a tokenizer that does not fit": (
        ["--config.model.decoder.vocab_size=50"],
        "set decoder.vocab_size to 40",
    ),
    "heads that do not divide": (
        ["--config.model.decoder.num_heads=3"],
        "config.model.decoder: width 16 does not divide by num_heads 3",
    ),
}


def run_main(args, monkeypatch, capsys) -> str:
    """What the command prints to stderr, having exited with status 2."""
    monkeypatch.setattr(sys, "argv", ["train", "--config=tests/tiny.py", *args])
    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_line(case, monkeypatch, capsys, tmp_path):
    args, expected = BAD_INPUT[case]
    workdir = tmp_path / "run"
    error = run_main([f"--workdir={workdir}", *args], monkeypatch, capsys)
    assert expected in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not workdir.exists()


def test_a_workdir_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    error = run_main([f"--workdir={tmp_path / 'file' / 'run'}"], monkeypatch, capsys)
    assert "cannot be written (Not a directory); choose another --workdir" in error


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/4/state"])
def test_a_workdir_with_another_config(left, monkeypatch, capsys, tmp_path):
    check_same_run(tmp_path, dump(build(TrainConfig, tiny.get_config().to_dict())))
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text('{"step": 1}\n')
    args = [f"--workdir={tmp_path}", "--config.optimizer.learning_rate=0.5"]
    error = run_main(args, monkeypatch, capsys)
    assert "holds a run with another config: optimizer.learning_rate was " in error
    assert "is now 0.5" in error


def test_a_workdir_that_is_an_address(monkeypatch, capsys):
    error = run_main(["--workdir=gs://bucket/run"], monkeypatch, capsys)
    assert "--workdir=gs://bucket/run is an address, expected a directory: mount" in error


def test_no_workdir_and_no_config(monkeypatch, capsys):
    assert "no workdir given" in run_main(["--workdir="], monkeypatch, capsys)
