"""Runs as commands that are killed, or told to stop."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flamingo_jax.train.metrics import read_metrics
from flamingo_jax.train.speed import read_ledger
from tests import WITHOUT_TORCH
from tests.train.test_train import CONFIG, final_params

ROOT = Path(__file__).parents[2]
STEPS = 100


@pytest.fixture(scope="module")
def command():
    """Starts a training process of many short steps."""
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    env = {**os.environ, "XLA_FLAGS": " ".join(flags), "PYTHONPATH": WITHOUT_TORCH}

    def start(workdir: Path, config: str = "tests/tiny.py", **changes):
        args = {"num_steps": STEPS, "checkpoint_every": 20, **changes}
        overrides = [f"--config.{key}={value}" for key, value in args.items()]
        return subprocess.Popen(
            [sys.executable, "-m", "flamingo_jax.train", f"--config={config}",
             f"--workdir={workdir}", *overrides],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def finish(process) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(command(workdir))
    return workdir


def test_the_start_is_timed_from_the_start_of_the_process(uninterrupted):
    (parts,) = (
        x["start_up"] for x in read_ledger(uninterrupted / "ledger.jsonl") if "start_up" in x
    )
    assert next(iter(parts)) == "imports"
    assert 0.1 < parts["imports"] < STEPS


def wait_for_step(process, workdir: Path, step: int) -> None:
    path = workdir / "metrics.jsonl"
    for _ in range(30_000):
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def test_a_run_that_is_killed_goes_on_bit_for_bit(command, uninterrupted, tmp_path):
    process = command(tmp_path)
    wait_for_step(process, tmp_path, 45)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(read_metrics_until_damage(tmp_path)) < STEPS
    assert "resumed from step" in finish(command(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_sigterm_saves_and_exits_with_0(command, uninterrupted, tmp_path):
    process = command(tmp_path, checkpoint_every=1000)
    wait_for_step(process, tmp_path, 10)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in finish(process)
    stopped = len(read_metrics(tmp_path))
    assert stopped < STEPS
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(stopped)]
    assert f"resumed from step {stopped}" in finish(command(tmp_path, checkpoint_every=1000))
    assert_same_run(tmp_path, uninterrupted)


def test_a_signal_during_compilation_saves_and_exits_with_0(command, tmp_path):
    """SIGUSR1 is what SLURM sends ahead of a job's end."""
    process = command(tmp_path)
    lines = [process.stdout.readline() for _ in range(3)]
    assert "frozen parameters on 1 cpu device(s)" in lines[0]
    assert lines[1].startswith("warning: the frozen ones are random")
    assert lines[2].startswith("attention: vision, resampler, text of")  # what compiles comes next
    process.send_signal(signal.SIGUSR1)
    out = finish(process)
    stopped = int(out.split("stopped by SIGUSR1 after step ")[1].split(";")[0])
    assert stopped <= 3
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(stopped)]


def test_a_signal_during_evaluation_ends_it_and_the_next_start_goes_on_with_it(command, tmp_path):
    process = command(tmp_path, "tests/evaluating.py", num_steps=4)
    for _ in range(30_000):
        if (tmp_path / "few_shot/3").exists():
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "the evaluation of step 3 was left for the next start" in out
    assert "stopped by SIGTERM after step 3" in out
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2]  # the third has no scores yet
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    out = finish(command(tmp_path, "tests/evaluating.py", num_steps=4))
    assert re.search("resumed from step 3.*step 3/4.*the first step ended", out, re.DOTALL)
    metrics = read_metrics(tmp_path)
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    scored = [any(name.startswith("few_shot/") for name in m) for m in metrics]
    assert scored == [False, False, True, False]


def read_metrics_until_damage(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert (workdir / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    config = dataclasses.replace(CONFIG, num_steps=STEPS)
    jax.tree.map(
        np.testing.assert_array_equal,
        final_params(workdir, config),
        final_params(reference, config),
    )
