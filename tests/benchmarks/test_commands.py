"""Each benchmark at its smallest size, as a command."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[2]
KEYS = {
    "train_step": ("ratio_step_time", "ratio_peak_memory", "ratio_layers", "mfu"),
    "data": (
        "ratio_docs_per_cpu_second",
        "ratio_memory",
        "start_up_seconds_100",
    ),
    "generate": (
        "ratio_greedy_tokens_per_second",
        "ratio_beam3_tokens_per_second",
        "ratio_classification",
        "ratio_classification_cached",
    ),
    "conversion": ("import_seconds", "ratio_load_seconds", "ratio_load_peak_memory"),
    "evaluation": (
        "cider_images_per_second",
        "ratio_vqa_answers_per_second",
        "harness_likelihood_examples_per_second",
        "harness_generation_examples_per_second",
    ),
    "retrieval": ("ratio_seconds", "ratio_peak_memory"),
    "int8": ("ratio_parameters", "ratio_perplexity", "same_likeliest_token"),
}
FLAGS = {
    "train_step": ["--turns=1"],
    "data": ["--rounds=1", "--workers=1"],
    "generate": ["--turns=1"],
    "evaluation": ["--turns=1"],
}


SLOW = ("train_step", "data", "generate")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in KEYS],
)
def written(request, tmp_path_factory):
    """(name, what the command printed, its JSON file)."""
    path = tmp_path_factory.mktemp("figures") / f"{request.param}.json"
    flags = ["--size=tiny", f"--json={path}", *FLAGS.get(request.param, [])]
    command = [sys.executable, "-m", f"benchmarks.{request.param}", *flags]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return request.param, ran.stdout, json.loads(path.read_text())


def test_table_and_file(written):
    name, printed, figures = written
    assert figures["benchmark"] == name
    assert figures["settings"]["size"] == "tiny"
    for key in KEYS[name]:
        assert figures[key] > 0, key
    rows = [line for line in printed.splitlines() if line][1:]
    shown = {line[: report.WIDTHS[0]].split(" (")[0].strip().replace(" ", "_") for line in rows}
    assert figures["units"].keys() <= shown
    if name == "generate":
        assert figures["greedy_compiled_after_first_call"] == 0
    if name == "retrieval":
        assert figures["same_rows"] > 0.99
    if name == "int8":
        assert figures["ratio_parameters"] < 0.8
    if name == "evaluation":
        installed = importlib.util.find_spec("pycocoevalcap") is not None
        assert installed == ("ratio_cider_images_per_second" in figures)
        assert installed or "pip install --no-deps pycocoevalcap" in printed
