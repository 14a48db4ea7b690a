import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import measuring, report
from flamingo_jax.errors import UserError


@pytest.fixture
def parse(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    before = jax.config.jax_platforms

    def parse(*argv, devices=tuple(report.PLATFORMS)):
        parser = report.parser("What it measures.\n\nMore.", ("small", "tiny"), devices)
        return report.parse(parser, ["program", *argv])

    yield parse
    jax.config.update("jax_platforms", before)


def test_table_and_file_hold_the_same(parse, tmp_path, capsys):
    path = tmp_path / "new/figures.json"
    table = report.Report("shovel", parse("--json", str(path), "--size=tiny"))
    table.add("step_time", 1.25, 2.5, unit="s")
    table.add("tokens_per_second", 30, 20, ratio=1.4)
    table.add("compiled_after_first_step", 0)
    table.note("A quiet machine.")
    table.write()
    written = json.loads(path.read_text())
    assert {key: written[key] for key in ("step_time", "step_time_peer", "ratio_step_time")} == {
        "step_time": 1.25,
        "step_time_peer": 2.5,
        "ratio_step_time": 0.5,
    }
    assert written["ratio_tokens_per_second"] == 1.4
    assert "compiled_after_first_step_peer" not in written
    assert written["benchmark"] == "shovel"
    assert written["units"]["step_time"] == "s"
    assert written["settings"] == {"size": "tiny", "device": "cpu"}
    assert written["machine"]["versions"]["jax"] == jax.__version__
    assert written["machine"]["cores"] >= 1
    assert "vectors" in written["machine"]
    assert [path.name for path in path.parent.iterdir()] == ["figures.json"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["shovel,", "size", "tiny,", "cpu", "ours", "peer", "ratio"],
        ["step", "time", "(s)", "1.25", "2.5", "0.50"],
        ["tokens", "per", "second", "30", "20", "1.40"],
        ["compiled", "after", "first", "step", "0", "-", "-"],
        ["A", "quiet", "machine."],
    ]


def test_device_reaches_jax_before_a_backend_starts():
    program = (
        "from benchmarks import report; import os; from jax._src import xla_bridge\n"
        "args = report.parse(report.parser('', ['tiny']), ['x'])\n"
        "assert os.environ['JAX_PLATFORMS'] == 'cpu'\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a machine with an accelerator")
def test_device_that_is_not_there_is_one_line(tmp_path):
    program = (
        "from benchmarks import report\n"
        "report.run(lambda argv: report.parse(report.parser('', ['tiny']), argv) and None)\n"
    )
    command = [sys.executable, "-c", program, "--device=tpu"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: --device tpu: JAX finds no tpu here")
    assert ran.stderr.count("\n") == 1


def test_wrong_flags_are_refused_before_anything_runs(parse, tmp_path):
    with pytest.raises(UserError, match="work of the host; expected --device cpu"):
        parse("--device=gpu", devices=("cpu",))
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file/figures.json"):
        with pytest.raises(UserError, match="--json"):
            parse("--json", str(path))


def hold(megabytes: int) -> int:
    with measuring.Peak() as peak:
        held = np.ones(megabytes << 17)
        time.sleep(0.1)
        del held
    return peak.grown


def test_peak_is_of_the_process_that_works():
    assert 60 < measuring.in_own_process(hold, 64) / 2**20 < 80


def test_turns_are_medians():
    clock = iter([0, 1, 1, 3, 3, 6, 6, 7, 7, 12, 12, 22]).__next__
    calls = []
    found = measuring.by_turns(
        lambda: calls.append("ours"), lambda: calls.append("peer"), 3, lambda: clock()
    )
    assert calls == ["ours", "peer"] * 3
    assert found == (3, 2, 0.5)
