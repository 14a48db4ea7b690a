"""The cluster's checks: on eight devices here, and on two processes that disagree."""

import subprocess
import sys
from pathlib import Path

import pytest

from flamingo_jax import doctor
from flamingo_jax.ops.attention_kernels import Kernel

ROOT = Path(__file__).parents[1]


def test_devices_are_counted():
    assert doctor.check_devices(8) == (True, "8 cpu on 1 process(es), 8 on each")
    passed, found = doctor.check_devices(16)
    assert not passed
    assert found == "8 cpu on 1 process(es), expected 16: 8 on each process"


def test_the_sum_over_devices_is_checked_and_timed():
    passed, found = doctor.check_all_reduce(1, minimum=0.0)
    assert passed
    assert found.startswith("right, ")
    passed, found = doctor.check_all_reduce(1, minimum=1e6)
    assert not passed
    assert found.endswith("expected 1000000.0")


def test_an_attention_kernel_that_is_off_is_found(monkeypatch):
    passed, found = doctor.check_attention()
    assert passed
    assert found.startswith("XLA is 0.5")
    monkeypatch.setattr(doctor, "compare_attention", lambda: (Kernel("cudnn"), 0.05, 0.01))
    assert doctor.check_attention() == (
        False,
        "cuDNN is 5.00% from float32, plain attention 1.00%",
    )


def test_a_directory_that_cannot_be_written_fails(tmp_path):
    assert doctor.check_shared_directory(tmp_path)[0]
    assert not list(tmp_path.iterdir())
    passed, found = doctor.check_shared_directory(tmp_path / "new")
    assert not passed
    assert "No such file or directory" in found
    assert not (tmp_path / "new").exists()  # a typing error is not a directory to make
    file = tmp_path / "file"
    file.write_text("")
    passed, found = doctor.check_shared_directory(file)
    assert not passed
    assert found.startswith(f"process 0 cannot write to {file}: ")


def test_clocks_and_versions_that_differ_are_named(monkeypatch):
    reports = [{"python": "3.11", "jax": "0.10.2"}, {"python": "3.11", "jax": "0.10.1"}]
    monkeypatch.setattr(doctor, "exchange", lambda own: reports)
    assert doctor.check_versions() == (
        False,
        "versions differ between processes: jax is 0.10.1 and 0.10.2",
    )
    times = iter([doctor.np.zeros((2, 1)), doctor.np.array([[1000, 0], [1002, 500_000]])])
    monkeypatch.setattr(doctor, "gather", lambda value: next(times))
    passed, found = doctor.check_clocks(1.0)
    assert not passed
    assert found == "clocks differ by at most 2000.500 s, allowed are 1.0 s"


@pytest.mark.parametrize(("expected", "status"), [(4, 0), (5, 1)])
def test_two_processes(tmp_path, expected, status):
    command = [sys.executable, "-m", "launch.local", "--processes", "2", "--devices-per-process"]
    command += ["2", "--", sys.executable, "-m", "flamingo_jax.doctor", "--megabytes=1"]
    command += [f"--expect-devices={expected}", f"--shared={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = done.stdout + done.stderr
    assert (done.returncode != 0) == (status != 0), lines
    assert f"ok: shared directory: {tmp_path} is shared by 2 process(es)" in lines
    wrong = "FAILED: devices: 4 cpu on 2 process(es), expected 5: 2 on each process"
    assert (wrong in lines) == (status != 0)
