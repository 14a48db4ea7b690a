"""Plans of the released models at their true sizes, for machines that are not here.

Their compilers are taken from the folder `compile-only` of the environment (`make compile-only`),
or from the one that COMPILE_ONLY names, so that JAX does not look for GPUs in every other test.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sizes
ROOT = Path(__file__).parents[2]
COMPILERS = Path(os.environ.get("COMPILE_ONLY", Path(sys.prefix) / "compile-only"))


def plan(config: str, topology: str, *arguments: str) -> dict:
    assert COMPILERS.is_dir(), f"no compilers in {COMPILERS}; bring them with `make compile-only`"
    command = [sys.executable, "-m", "flamingo_jax.plan", f"--config={config}"]
    command += [f"--topology={topology}", "--json", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    path = os.pathsep.join(filter(None, [str(COMPILERS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        env=environment | {"PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def rows(devices: int) -> list[str]:
    """8 interleaved rows and 16 pairs per device."""
    return [
        f"--config.streams.mmc4.batch_size={8 * devices}",
        f"--config.streams.laion.batch_size={16 * devices}",
        "--config.accumulation_steps=1",
        "--config.mesh.data=1",
        f"--config.mesh.fsdp={devices}",
    ]


def assert_exact(memory: dict, topology: str) -> None:
    """Arguments are those that the compiler accounts for. A TPU pads small arrays to tiles, so its
    account may be larger."""
    arrays, compiled = memory["arguments_gib"], memory["compiled_arguments_gib"]
    if topology.startswith("v"):
        assert compiled >= arrays
    else:
        assert compiled == arrays


WIDE = ["--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.model.dtype=bfloat16"]


def test_searches_find_what_fits():
    found = plan("tests/wide.py", "a100-40gb:8", *WIDE, "--search-remat")
    assert found["search_remat"]["chosen"] == found["remat"] == "none"
    memory = found["per_device"]
    assert memory["fits"]
    assert memory["peak_gib"] >= memory["arguments_gib"] > 0
    assert memory["capacity_gib"] < memory["memory_gib"]
    assert found["speed"]["step_seconds"] > 0


@pytest.mark.parametrize(
    "topology",
    ["a100-40gb:8", "a100-80gb:8", "h100:8", "v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"],
)
def test_arguments_are_exact_on_every_machine(topology):
    devices = 4 if topology.endswith("2x2x1") else 8
    memory = plan("tests/wide.py", topology, *WIDE, f"--config.mesh.fsdp={devices}")["per_device"]
    assert_exact(memory, topology)


@pytest.mark.parametrize(
    ("topology", "kernel"),
    [("v5e:2x4", "splash"), ("a100-40gb:8", "XLA (cuDNN is not installed)")],
)
def test_the_kernel_that_will_run_is_planned(topology, kernel):
    """Or the plan says why not: cuDNN's calls need cuDNN even where nothing runs."""
    text = "--config.streams.interleaved.text_length=128"
    found = plan("tests/wide.py", topology, *WIDE, text)
    assert f"text of 128: {kernel}" in found["attention"]


@pytest.mark.parametrize(
    ("config", "topology", "devices", "remat", "limit"),
    [
        ("configs/of9b.py", "a100-40gb:8", 8, "full", 6.5),
        ("configs/of9b.py", "a100-40gb:8", 8, "dots", 12),
        ("configs/of3b.py", "a100-40gb:1", 1, "full", 20),
        ("configs/of9b.py", "v5e:2x4", 8, "full", 8),
    ],
)
def test_released_models_fit(config, topology, devices, remat, limit):
    found = plan(config, topology, *rows(devices), f"--config.model.remat={remat}")
    print(config, topology, remat, found["per_device"])
    assert found["per_device"]["peak_gib"] <= limit
    assert found["per_device"]["fits"]
    assert_exact(found["per_device"], topology)
    kinds = {traffic["kind"] for traffic in found["collectives"]}
    assert "all-to-all" not in kinds
