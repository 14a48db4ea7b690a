"""Runs of several real processes: the losses of one device, and what a dead process does."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest

from flamingo_jax.schema import build
from flamingo_jax.train.checkpoint import Checkpointer
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.loop import run
from flamingo_jax.train.metrics import read_metrics
from flamingo_jax.train.setup import set_up
from tests import WITHOUT_TORCH, wide

ROOT = Path(__file__).parents[2]
CHANGES = {"num_steps": 16, "checkpoint_every": 4, "dead_after_seconds": 20}
CONFIG = build(TrainConfig, wide.get_config().to_dict() | CHANGES)
TIME_OUT = CONFIG.dead_after_seconds + 30.0  # within which the others end when one process is gone
pytestmark = pytest.mark.slow


class Launch:
    """`python -m launch.local` with a training command, its output in a file."""

    def __init__(
        self,
        workdir: Path,
        model: str,
        processes: int,
        *changes: str,
        command: tuple[str, ...] = ("-m", "flamingo_jax.train"),
        grace: float = TIME_OUT,
    ):
        workdir.mkdir(exist_ok=True)
        self.workdir = workdir
        self._path = workdir / "output.txt"
        self._path.unlink(missing_ok=True)
        with self._path.open("w") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "launch.local", "--processes", str(processes)),
                    *("--devices-per-process", str(4 // processes), "--grace", str(grace)),
                    *("--", sys.executable, *command),
                    *("--config=tests/wide.py", f"--workdir={workdir}"),
                    *(f"--config.{key}={value}" for key, value in CHANGES.items()),
                    *(f"--config.init_from={model}", *(f"--config.{c}" for c in changes)),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": WITHOUT_TORCH},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._path.read_text()

    def send(self, index: int, number: int) -> None:
        """To one of the processes."""
        found = re.search(rf"^process {index} has pid (\d+)$", self.output, re.MULTILINE)
        assert found, self.output
        os.kill(int(found[1]), number)

    def wait_for_step(self, step: int) -> None:
        path = self.workdir / "metrics.jsonl"
        self.wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= step)

    def wait_for(self, done: Callable[[], bool]) -> None:
        for _ in range(30_000):
            if done():
                return
            assert self._process.poll() is None, self.output
            time.sleep(0.01)
        raise AssertionError(f"waited for in vain: {self.output}")

    def status(self) -> int:
        try:
            return self._process.wait(timeout=300)
        finally:
            self._process.terminate()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wide.write_model(tmp_path_factory.mktemp("model") / "model", CONFIG.model)


@pytest.fixture(scope="module")
def one_device(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one_device")
    run(dataclasses.replace(CONFIG, init_from=model), workdir, jax.devices()[:1])
    return workdir


@pytest.fixture(scope="module")
def two_processes(model, tmp_path_factory):
    """FSDP inside of each of two processes, data parallel across them."""
    launch = Launch(tmp_path_factory.mktemp("two"), model, 2, "mesh.fsdp=2")
    assert launch.status() == 0, launch.output
    return launch


def assert_same_losses(one: Path, other: Path) -> None:
    for first, second in zip(read_metrics(one), read_metrics(other), strict=True):
        for name, value in first.items():
            np.testing.assert_allclose(second[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_two_processes_give_the_losses_of_one_device(one_device, two_processes):
    assert_same_losses(one_device, two_processes.workdir)
    assert "on 4 cpu device(s)" in two_processes.output
    assert "[0] step 16/16" in two_processes.output
    assert "[1] step" not in two_processes.output  # one logs for all


def test_four_processes_give_the_losses_of_one_device(one_device, model, tmp_path):
    launch = Launch(tmp_path, model, 4, "mesh.fsdp=2", "mesh.tensor=2")
    assert launch.status() == 0, launch.output
    assert_same_losses(one_device, tmp_path)


def final_state(workdir: Path):
    with closing(Checkpointer(workdir)) as checkpointer:
        state, facts = checkpointer.restore(set_up(CONFIG, jax.devices()[:1]).state_shapes)
    assert facts["step"] == CONFIG.num_steps
    return state


def test_two_processes_stop_together_and_go_on_bit_for_bit(two_processes, model, tmp_path):
    """SIGTERM reaches one of them; then one of them is killed; the third start finishes."""
    launch = Launch(tmp_path, model, 2, "mesh.fsdp=2")
    launch.wait_for_step(5)
    launch.send(1, signal.SIGTERM)
    assert launch.status() == 0, launch.output
    stopped = re.search(r"stopped by SIGTERM after step (\d+)", launch.output)
    assert stopped
    assert int(stopped[1]) < CONFIG.num_steps
    assert (tmp_path / "checkpoints" / stopped[1]).is_dir()

    launch = Launch(tmp_path, model, 2, "mesh.fsdp=2")
    launch.wait_for_step(int(stopped[1]) + 4)
    launch.send(1, signal.SIGKILL)
    killed = time.monotonic()
    assert launch.status() == 128 + signal.SIGKILL
    assert time.monotonic() < killed + TIME_OUT  # the other ended by itself, not by the launcher
    assert "process 1 was ended by SIGKILL" in launch.output

    launch = Launch(tmp_path, model, 2, "mesh.fsdp=2")
    assert launch.status() == 0, launch.output
    assert "[0] resumed from step" in launch.output
    metrics = "metrics.jsonl"
    assert (tmp_path / metrics).read_text() == (two_processes.workdir / metrics).read_text()
    jax.tree.map(
        np.testing.assert_array_equal, final_state(tmp_path), final_state(two_processes.workdir)
    )


def test_two_processes_leave_an_evaluation_together(model, tmp_path):
    changes = "few_shot.tasks={'digits': {}}", "few_shot.shots=(0,)", "few_shot.num_samples=300"
    changes = "mesh.fsdp=2", "num_steps=4", "evaluate_every=3", *changes
    launch = Launch(tmp_path, model, 2, *changes)
    launch.wait_for(lambda: (tmp_path / "few_shot/3").exists())
    launch.send(1, signal.SIGTERM)
    assert launch.status() == 0, launch.output
    assert "[0] the evaluation of step 3 was left for the next start" in launch.output
    assert "[0] stopped by SIGTERM after step 3" in launch.output
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2]  # the third has no scores yet


RUNS_DRY = """
import os
from flamingo_jax import cli
from flamingo_jax.data.pipeline import StepSource
from flamingo_jax.train.__main__ import main

read = StepSource.read

def fail_on_one_host(self, step):
    if step == 6 and os.environ["JAX_PROCESS_ID"] == "1":
        raise OSError("the disk with the data is gone")
    return read(self, step)

StepSource.read = fail_on_one_host
cli.run(main)
"""


def test_data_that_fails_on_one_host_stops_all_with_an_error(model, tmp_path):
    launch = Launch(tmp_path, model, 2, "mesh.fsdp=2", command=("-c", RUNS_DRY))
    begin = time.monotonic()
    assert launch.status() != 0
    assert time.monotonic() < begin + 300
    assert "[1] OSError: the disk with the data is gone" in launch.output
    assert "[0] error: process 1 failed; see what it printed" in launch.output
    assert len(read_metrics(tmp_path)) == 6  # the batches before it were used


def test_a_process_that_hangs_ends_the_others_with_their_stacks(model, tmp_path):
    # What hangs does not end when it is asked to, so there is nothing to wait for.
    changes = "mesh.fsdp=2", "watchdog_seconds=10", "dead_after_seconds=60"  # the watchdog is first
    launch = Launch(tmp_path, model, 2, *changes, grace=5)
    launch.wait_for_step(3)
    launch.send(1, signal.SIGSTOP)
    assert launch.status() == 70  # the watchdog's; the launcher then ends the one that hangs
    assert re.search(
        r"\[0\] process 0: step \d+ has taken more than 10 s; its threads", launch.output
    )
    assert re.search(r'\[0\]   File ".*flamingo_jax/train/loop.py", line \d+ in run', launch.output)
