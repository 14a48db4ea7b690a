"""The command in its smallest size: rates, and what `benchmarks.floor` makes of them."""

import json
import subprocess
import sys

import pytest

from benchmarks.ceilings import DTYPES
from benchmarks.floor import measured_ceilings


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    path = tmp_path_factory.mktemp("ceilings") / "ceilings.json"
    command = [sys.executable, "-m", "benchmarks.ceilings", "--size=tiny", f"--json={path}"]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_ceilings_are_the_best_of_their_rows(figures):
    found = json.loads(figures.read_text())
    for dtype in DTYPES:
        row = f"matmul_{dtype}_square_64"
        rows = [found[row], found[f"{row}_peer"]]
        assert min(rows) > 0
        assert found[f"ceiling_{dtype}"] == pytest.approx(max(rows), rel=1e-3)
        assert found["units"][row] == "TFLOP/s"
    names = ("memory_scale", "memory_triad")
    rows = [found[name] for name in names] + [found[f"{name}_peer"] for name in names]
    assert found["ceiling_memory"] == pytest.approx(max(rows), rel=1e-3)
    assert "host_to_device" not in found  # the host is the device


def test_the_floor_takes_them(figures):
    found = json.loads(figures.read_text())
    ceilings = measured_ceilings(figures, "float32")
    assert ceilings.flops == pytest.approx(1e12 * found["ceiling_float32"])
    assert ceilings.bandwidth == pytest.approx(1e9 * found["ceiling_memory"])
