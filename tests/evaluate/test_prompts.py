"""Prompts with their images against the original's, which was run on the fake data."""

import json
import subprocess
import sys

import pytest

from flamingo_jax.evaluate.config import FewShotConfig, make_task
from flamingo_jax.evaluate.plan import plan, read
from tests.evaluate import goldens

NAME = "golden_prompts.json"
GOLDEN = json.loads((goldens.COMMITTED / NAME).read_text())
SHARED = goldens.SHARED / NAME
TOOL = goldens.SHARED.parents[1] / "tools/make_fake_eval_data.py"
NAMES = {"flickr": "flickr30k", "ok_vqa": "okvqa"}


def cases(runs):
    return [pytest.param(run, id=f"{run['dataset']}-{run['shots']}") for run in runs]


def replayed(root, run, **settings):
    name = NAMES.get(run["dataset"], run["dataset"])
    config = FewShotConfig(
        data_root=str(root),
        sampling="openflamingo",
        query_set_size=20,
        tasks={name: {}},
        **settings,
    )
    dataset = read(name, make_task(name, {}), config, None)
    return dataset.task, [
        prompts[0] for prompts in plan(dataset, config, run["shots"], run["seed"])
    ]


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    subprocess.run([sys.executable, str(TOOL), str(root)], check=True)
    return root


def check(root, run):
    task, prompts = replayed(root, run)
    assert [(p.text, list(p.images)) for p in prompts] == [
        (call["text"], call["images"]) for call in run["calls"]
    ]
    if "gen" in run["calls"][0]:
        settings = run["calls"][0]["gen"]
        assert task.max_new_tokens == settings["max_generation_length"]
        assert task.num_beams == settings["num_beams"]
        assert task.length_penalty == settings["length_penalty"]


@pytest.mark.parametrize("run", cases(GOLDEN["runs"]))
def test_replay_gives_the_prompts_of_the_original(fake_root, run):
    check(fake_root, run)


def shared_runs():
    return json.loads(SHARED.read_text())["runs"] if SHARED.is_file() else []


@pytest.mark.parametrize("run", cases(shared_runs()))
def test_replay_gives_every_golden_prompt(shared_data, run):
    check(shared_data, run)
