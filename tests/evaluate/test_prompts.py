"""Prompts with their images against the original's, which was run on the fake data."""

import json
import subprocess
import sys

import pytest

from flamingo_jax.evaluate.config import FewShotConfig, make_task
from flamingo_jax.evaluate.plan import plan, read
from tests import golden_root

NAME = "eval/golden_prompts.json"
GOLDEN = json.loads((golden_root.COMMITTED / NAME).read_text())
# Beside the cases: what made the files on which the original was run.
TOOL = "../tools/make_fake_eval_data.py"
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
    subprocess.run([sys.executable, str(golden_root.ROOT / TOOL), str(root)], check=True)
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
def test_replay_gives_the_golden_prompts_of_the_committed_part(fake_root, run):
    check(fake_root, run)


def shared_runs():
    path = golden_root.ROOT / NAME
    return json.loads(path.read_text())["runs"] if path.is_file() else []


@golden_root.needs(TOOL)
@pytest.mark.parametrize("run", golden_root.each(cases(shared_runs()), NAME))
def test_replay_gives_every_golden_prompt(shared_data, run):
    check(shared_data, run)
