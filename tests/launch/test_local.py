"""`python -m launch.local` with commands that take no time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --other"},
    )  # fmt: skip


def run(*arguments: str) -> tuple[int, list[str], str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


def test_dry_run_prints_what_each_process_gets():
    status, lines, _ = run(
        *("--processes", "2", "--devices-per-process", "4", "--port", "1234", "--dry-run"),
        *("--", "python", "-m", "flamingo_jax.train", "--config.x=a b"),
    )
    assert status == 0
    assert lines == [
        f"JAX_COORDINATOR_ADDRESS=localhost:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={index} "
        "JAX_PLATFORMS=cpu XLA_FLAGS='--other --xla_force_host_platform_device_count=4' "
        "python -m flamingo_jax.train '--config.x=a b'"
        for index in range(2)
    ]


def test_gpus_are_dealt_out_in_order():
    _, lines, _ = run(
        *("--processes", "2", "--gpus-per-process", "2", "--dry-run", "--", "python", "-V")
    )
    assert [line.split()[-3] for line in lines] == [
        "CUDA_VISIBLE_DEVICES=0,1",
        "CUDA_VISIBLE_DEVICES=2,3",
    ]


def test_output_says_whose_it_is_and_the_first_failure_is_the_status():
    code = (
        "import os, sys; i = int(os.environ['JAX_PROCESS_ID']); print('I am', i); sys.exit(3 * i)"
    )
    status, lines, err = run("--processes", "2", *python(code))
    assert status == 3
    assert sorted(lines) == ["[0] I am 0", "[1] I am 1"]
    assert "process 1 failed with status 3" in err


def test_what_outlives_a_failure_is_ended_after_the_grace_time():
    code = (
        "import os, time; time.sleep(100 * (os.environ['JAX_PROCESS_ID'] == '0')); raise ValueError"
    )
    begin = time.monotonic()
    status, _, _ = run("--processes", "2", "--grace", "0.5", *python(code))
    assert status == 1
    assert time.monotonic() < begin + 30


def test_signals_go_on_to_all():
    code = (  # no print in the handler: it may interrupt the one below
        "import os, signal, sys, time; "
        "signal.signal(signal.SIGUSR1, lambda *_: [os.write(1, b'saved\\n'), sys.exit()]); "
        "print('ready', flush=True); time.sleep(100)"
    )
    process = start("--processes", "2", *python(code))
    ready = sorted(process.stdout.readline() for _ in range(2))
    assert ready == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]


def test_a_command_is_needed():
    status, _, err = run("--processes", "2")
    assert status == 2
    assert "no command given; put it after --" in err
