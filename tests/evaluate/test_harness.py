"""Every task from its files to its score, with a tiny model of random weights."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.errors import Stopped, UserError
from flamingo_jax.evaluate import harness
from flamingo_jax.evaluate.command import neighbours_of
from flamingo_jax.evaluate.harness import evaluate
from flamingo_jax.evaluate.scores import rescore
from flamingo_jax.evaluate.tasks import TASKS
from flamingo_jax.similarity.clip import load_clip
from tests import WITHOUT_TORCH
from tests.evaluate.conftest import answers, lines, write_config

ROOT = Path(__file__).parents[2]
FILES = [name for name, kind in TASKS.items() if kind().files("test")]  # the tasks of real data
SIZES = {"hateful_memes": 8, "imagenet": 6, "scienceqa": 6, "scienceqa_thought": 6}  # others: 11


@pytest.fixture(scope="module")
def rices(clip_folder, tmp_path_factory):
    """The settings of demonstrations with similar images."""
    return {
        "demonstrations": "rices",
        "rices_model": str(clip_folder),
        "feature_cache": str(tmp_path_factory.mktemp("features")),
    }


@pytest.fixture(scope="module")
def everything(on_devices, settings, rices, tmp_path_factory):
    """Results of all tasks, random and RICES, by the number of devices."""
    made = {}
    for count, model in on_devices.items():
        out = made[count] = tmp_path_factory.mktemp(f"on{count}")
        for changes in ({}, rices):
            config = settings(*FILES, **changes)
            evaluate(model, config, out, neighbours_of(config))
    return made


def test_every_task_gives_a_score(everything):
    found = answers(everything[1])
    assert len(found) == len(FILES) * 2 * 3
    for name, (score, examples) in found.items():
        assert math.isfinite(score)
        assert len(examples) == SIZES.get(name.split("/")[0], 11)
    for shots in (0, 2, 4):
        random, rices = (found[f"coco/{shots}-{m}-seed42"][1] for m in ("random", "rices"))
        assert [e[1] for e in random] != [e[1] for e in rices]
        assert len({e[2] for e in random}) > 1, "the model says the same whatever it is shown"


def test_the_number_of_devices_changes_nothing(everything):
    assert answers(everything[1]) == answers(everything[8])


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(
    everything, model_folder, settings, rices, tmp_path
):
    out = tmp_path / "out"
    for changes in ({}, rices):
        config = write_config(tmp_path, settings(*FILES, **changes))
        launch = ["-m", "launch.local", "--processes", "2", "--devices-per-process", "1", "--"]
        evaluation = ["-m", "flamingo_jax.evaluate", f"--config={config}"]
        ended = subprocess.run(
            [sys.executable, *launch, sys.executable, *evaluation,
             f"--model={model_folder}", f"--output={out}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": WITHOUT_TORCH},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert answers(out) == answers(everything[1])


def test_lines_hold_all_that_an_answer_depends_on(everything, fake_root):
    folder = everything[1] / "vqav2/2-rices-seed42"
    for record in lines(folder / "examples.jsonl"):
        assert record["prompt"].count("<image>") == len(record["images"]) == 3
        assert len(record["demonstrations"]) == 2
        assert all((fake_root / image).is_file() for image in record["images"])
        assert record.keys() >= {"raw", "answer", "score", "references", "question_type"}
    assert not (folder / "parts").exists()
    manifest = json.loads((everything[1] / "manifest.json").read_text())
    assert manifest.keys() == {"format", "model", "data", "settings", "versions"}
    assert len(manifest["model"]["hash"]) == 64


def test_the_most_similar_demonstration_comes_last(everything, fake_root, clip_folder):
    clip = load_clip(clip_folder)
    for record in lines(everything[1] / "imagenet/4-rices-seed42/examples.jsonl"):
        features = clip.encode_images([Image.open(fake_root / i) for i in record["images"]])
        similar = features[:-1] @ features[-1]
        assert (np.diff(similar) > -1e-6).all()
        others = sorted((fake_root / "imagenet/train").glob("*/*"))
        pool = clip.encode_images([Image.open(path) for path in others])
        assert np.isclose(similar[-1], (pool @ features[-1]).max(), atol=1e-5)


def test_killed_in_the_middle_and_started_again(
    everything, on_devices, settings, tmp_path, monkeypatch
):
    ask, calls = harness.answer, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ask(*args)

    config = settings("coco", "hateful_memes", shots=(2,))
    monkeypatch.setattr(harness, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(on_devices[1], config, tmp_path)
    folder = tmp_path / "coco/2-random-seed42"
    part = folder / "parts/process-0.jsonl"
    assert len(lines(part)) == 8
    with part.open("a") as file:
        file.write('{"id": "2665", "prom')  # a line that was being written
    monkeypatch.setattr(harness, "answer", lambda *args: calls.append(args) or ask(*args))
    evaluate(on_devices[1], config, tmp_path)
    assert len(calls) == 2 + 1 + 1  # of COCO's two batches the first was kept
    whole = answers(everything[1])
    assert answers(tmp_path) == {name: whole[name] for name in answers(tmp_path)}
    evaluate(on_devices[1], config, tmp_path)
    assert len(calls) == 4, "what is complete is not asked again"


def test_one_that_is_asked_to_stop_leaves_the_next_batch(
    everything, on_devices, settings, tmp_path
):
    config = settings("coco", "hateful_memes", shots=(2,))
    asked = iter((False, True))
    with pytest.raises(Stopped):
        evaluate(on_devices[1], config, tmp_path, stopping=lambda: next(asked))
    assert [p.name for p in tmp_path.glob("*/*")] == ["2-random-seed42"]
    assert len(lines(tmp_path / "coco/2-random-seed42/parts/process-0.jsonl")) == 8
    evaluate(on_devices[1], config, tmp_path)
    whole = answers(everything[1])
    assert answers(tmp_path) == {name: whole[name] for name in answers(tmp_path)}


def test_rescoring_needs_neither_model_nor_data(everything, on_devices, settings, tmp_path):
    config = settings("coco", "vizwiz", "hateful_memes", shots=(0,))
    evaluate(on_devices[1], config, tmp_path)
    before = answers(tmp_path)
    path = tmp_path / "vizwiz/0-random-seed42/examples.jsonl"
    records = lines(path)
    records[0]["raw"] = f"{records[0]['references'][0]}, or so. Question: and"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    made = rescore(tmp_path)
    assert made["coco/0-random-seed42"] == before["coco/0-random-seed42"][0]
    assert made["vizwiz/0-random-seed42"] > before["vizwiz/0-random-seed42"][0]
    assert lines(path)[0]["answer"] == records[0]["references"][0]
    theirs = rescore(tmp_path, "openflamingo")  # takes equal records for one annotator
    assert theirs["vizwiz/0-random-seed42"] < made["vizwiz/0-random-seed42"]
    with pytest.raises(UserError, match="holds no results"):
        rescore(tmp_path / "coco")


def test_context_images_can_be_taken_away(on_devices, settings, tmp_path):
    config = settings("vqav2", shots=(2,))
    for kind in ("own", "shuffled", "blank", "removed"):
        evaluate(on_devices[1], dataclasses.replace(config, context_images=kind), tmp_path)
    names = [f"2-random-seed42{s}" for s in ("", *(f"-images={k}" for k in
             ("shuffled", "blank", "removed")))]  # fmt: skip
    own, shuffled, blank, removed = (
        lines(tmp_path / "vqav2" / name / "examples.jsonl") for name in names
    )
    for a, b, c, d in zip(own, shuffled, blank, removed, strict=True):
        assert b["images"] == [a["images"][1], a["images"][0], a["images"][2]]
        assert c["images"] == ["", "", a["images"][2]]
        assert d["images"] == a["images"][2:]
        assert a["prompt"] == b["prompt"] == c["prompt"]
        assert d["prompt"].count("<image>") == 1
    assert len({json.dumps([r["raw"] for r in x]) for x in (own, shuffled, blank, removed)}) > 1


def test_results_belong_to_one_model_and_one_setting(everything, on_devices, settings, tmp_path):
    config = settings("coco", shots=(0,), num_samples=2)
    evaluate(on_devices[1], config, tmp_path)
    other = dataclasses.replace(config, num_samples=3, metric_mode="openflamingo")
    with pytest.raises(UserError, match=r"other config\.metric_mode, config\.num_samples"):
        evaluate(on_devices[1], other, tmp_path)
    with pytest.raises(UserError, match=r"other model\.hash"):
        evaluate(dataclasses.replace(on_devices[1], facts={"hash": "x"}), config, tmp_path)
    evaluate(on_devices[1], dataclasses.replace(config, shots=(2,)), tmp_path)
    assert len(answers(tmp_path)) == 2
