"""Original files, their faults, and what test servers take."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate import sampling
from flamingo_jax.evaluate.command import neighbours_of
from flamingo_jax.evaluate.harness import evaluate
from flamingo_jax.evaluate.metrics.vqa import normalize
from flamingo_jax.evaluate.plan import read, show
from flamingo_jax.evaluate.prompts import make_prompt
from flamingo_jax.evaluate.tasks import TASKS, DataErrors, Example, read_split
from flamingo_jax.evaluate.tasks import task as task_module
from flamingo_jax.weights.readers import read_json
from tests.evaluate import goldens
from tests.evaluate.conftest import lines

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@pytest.fixture
def spoilt(fake_root, tmp_path):
    """A copy of the data of some tasks, to be spoilt."""

    def copy(*tasks):
        for name in tasks:
            shutil.copytree(fake_root / name, tmp_path / name)
        return tmp_path

    return copy


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def first_label(root, label):
    path = root / "hateful_memes/dev.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"label": label}), *rest]) + "\n")


FAULTS = {
    "missing image": (
        "vqav2",
        lambda root: (root / "vqav2/val2014/COCO_val2014_000000500000.jpg").unlink(),
        {"missing image": 2},  # two questions are about it
    ),
    "question without annotation": (
        "vqav2",
        lambda root: change(root / "vqav2" / ANNOTATIONS, lambda c: c["annotations"].pop()),
        {"question without annotation": 1},
    ),
    "question without answers": (
        "vqav2",
        lambda root: change(
            root / "vqav2" / ANNOTATIONS, lambda c: c["annotations"][3].update(answers=[])
        ),
        {"question without answers": 1},
    ),
    "duplicate id": (
        "vqav2",
        lambda root: change(
            root / "vqav2" / QUESTIONS, lambda c: c["questions"].append(c["questions"][0])
        ),
        {"duplicate id": 1},
    ),
    "no caption": (
        "coco",
        lambda root: change(
            root / "coco/dataset_coco.json", lambda c: c["images"][40].update(sentences=[])
        ),
        {"no caption": 1},
    ),
    "unknown class": (
        "imagenet",
        lambda root: (root / "imagenet/val/n01440764").rename(root / "imagenet/val/n99999999"),
        {"unknown class": 1},
    ),
    "unknown label": ("hateful_memes", lambda root: first_label(root, 2), {"unknown class": 1}),
    "no label": ("hateful_memes", lambda root: first_label(root, None), {"no label": 1}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_an_error_or_counted(spoilt, fault):
    name, spoil, counts = FAULTS[fault]
    root, task = spoilt(name), TASKS[name]()
    sound = read_split(task, root, "test", DataErrors("raise"))
    spoil(root)
    with pytest.raises(UserError, match=next(iter(counts))):
        read_split(task, root, "test", DataErrors("raise"))
    problems = DataErrors("skip")
    left = read_split(task, root, "test", problems)
    assert problems.counts == counts
    if name != "imagenet":  # where one fault is a whole folder
        assert len(left) == len(sound) - ("duplicate" not in fault) * sum(counts.values())


def test_without_shots_no_training_images_are_needed(spoilt, settings):
    root, task = spoilt("vqav2"), TASKS["vqav2"]()
    shutil.rmtree(root / "vqav2/train2014")
    config = settings("vqav2", data_root=str(root), shots=(0,))
    assert len(read("vqav2", task, config, None).train) == 40
    with pytest.raises(UserError, match=r"train2014.*missing image"):
        read("vqav2", task, dataclasses.replace(config, shots=(0, 2)), None)


def test_a_file_in_another_format_is_refused(spoilt):
    root = spoilt("coco")
    change(root / "coco/dataset_coco.json", lambda c: c["images"][0].pop("split"))
    with pytest.raises(UserError, match="an entry without 'split': give the files in their"):
        read_split(TASKS["coco"](), root, "train", DataErrors("skip"))


def test_an_unreadable_image_is_an_error_or_counted(spoilt, on_devices, settings, tmp_path):
    root = spoilt("hateful_memes")
    (root / "hateful_memes/img/20003.png").write_bytes(b"no image")
    config = settings("hateful_memes", data_root=str(root), shots=(0,))
    with pytest.raises(UserError, match=r"example 20003: image cannot be decoded.*unreadable"):
        evaluate(on_devices[1], config, tmp_path / "raise")
    config = settings("hateful_memes", data_root=str(root), shots=(0,), on_error="skip")
    evaluate(on_devices[1], config, tmp_path / "skip")
    folder = tmp_path / "skip/hateful_memes/0-random-seed42"
    score = json.loads((folder / "score.json").read_text())
    assert (score["n"], score["skipped"]) == (7, 1)
    assert score["settings"]["skipped_because"] == {"unreadable image": 1}
    assert lines(folder / "skipped.jsonl") == [{"id": "20003", "skipped": "unreadable image"}]


def test_similar_images_are_sought_among_the_readable(spoilt, settings, clip_folder, tmp_path):
    root, task = spoilt("hateful_memes"), TASKS["hateful_memes"]()
    shown, asked = (root / f"hateful_memes/img/{name}.png" for name in ("10004", "20003"))
    whole = {path: path.read_bytes() for path in (shown, asked)}
    config = settings(
        "hateful_memes",
        data_root=str(root),
        shots=(4,),
        on_error="skip",
        demonstrations="rices",
        rices_model=str(clip_folder),
        feature_cache=str(tmp_path / "features"),
    )
    found = neighbours_of(config)
    shown.write_bytes(whole[shown][:60])
    asked.write_bytes(b"no image")
    for _ in range(2):  # encoded, then found
        dataset = read("hateful_memes", task, config, found)
        assert dataset.left_out_of_train == {"unreadable image": 1}
        assert dataset.neighbours.keys() == {e.id for e in dataset.test} - {"20003"}
        assert "10004" not in {
            dataset.train[i].id for row in dataset.neighbours.values() for i in row
        }
        assert {len(few) for _, few in show(dataset, config, 4, 42)} == {4}
    with pytest.raises(UserError, match="20 demonstrations are asked for, but there are 19 to"):
        read("hateful_memes", task, dataclasses.replace(config, shots=(20,)), found)
    strict = dataclasses.replace(config, on_error="raise")
    with pytest.raises(UserError, match=r"img/20003\.png: image cannot be decoded.*: unreadable"):
        read("hateful_memes", task, strict, found)
    asked.write_bytes(whole[asked])
    with pytest.raises(UserError, match=r"img/10004\.png: image cannot be decoded.*: unreadable"):
        read("hateful_memes", task, strict, found)
    shown.write_bytes(whole[shown])
    dataset = read("hateful_memes", task, strict, found)
    assert dataset.neighbours.keys() == {e.id for e in dataset.test}
    assert not dataset.left_out_of_train


def test_more_shots_than_examples_are_refused(on_devices, settings, tmp_path):
    with pytest.raises(UserError, match="16 demonstrations are asked for, but there are 14"):
        evaluate(on_devices[1], settings("scienceqa", shots=(16,)), tmp_path)


def test_the_server_of_vqav2_gets_every_question(fake_root, on_devices, settings, tmp_path):
    config = settings("vqav2", shots=(0,))
    config.tasks["vqav2"] = {**config.tasks["vqav2"], "split": "test-dev2015"}
    assert evaluate(on_devices[1], config, tmp_path) == {"vqav2/0-random-seed42": None}
    folder = tmp_path / "vqav2/0-random-seed42"
    entries = json.loads((folder / "submission.json").read_text())
    path = fake_root / "vqav2/v2_OpenEnded_mscoco_test2015_questions.json"
    asked = [q["question_id"] for q in json.loads(path.read_text())["questions"]]
    assert [entry["question_id"] for entry in entries] == asked
    answered = {r["question_id"]: normalize(r["answer"]) for r in lines(folder / "examples.jsonl")}
    assert len(answered) == 4
    assert [entry["answer"] for entry in entries] == [answered.get(key, "") for key in asked]


def test_the_server_of_vizwiz_gets_every_image(spoilt):
    root = spoilt("vizwiz")
    for kind in ("questions", "annotations"):
        path = root / f"vizwiz/val_{kind}_vqa_format.json"
        path.rename(path.with_name(f"test_{kind}_vqa_format.json"))
    (root / "vizwiz/val").rename(root / "vizwiz/test")
    task = TASKS["vizwiz"](split="test")
    examples = read_split(task, root, "test", DataErrors("raise"))
    assert len(examples) == 11
    assert not any(example.references for example in examples)  # not public, even if there
    entries = task.submission(root, {"0": "The Cat!"})
    assert [e["image"] for e in entries] == [f"VizWiz_val_{i:08d}.jpg" for i in range(11)]
    assert [e["answer"] for e in entries] == ["cat"] + [""] * 10


def test_golden_generations_are_cut_as_by_the_original():
    for case in goldens.load("golden_vqa.json")["cases"]:
        task = TASKS[{"ok_vqa": "okvqa"}.get(case["dataset"], case["dataset"])]()
        if task.folder != "okvqa":  # whose stemmer has a test of its own
            assert task.process(case["generation"]) == case["prediction"]


def test_answers_after_a_chain_of_thought():
    process = TASKS["scienceqa_thought"]().process
    assert process("A lecture. The answer is B. Or the answer is (C).") == "C"
    assert process("The answer is Apple.") == ""


def test_classes_that_share_a_name_are_told_apart(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n03773504", "n04008634", "n04355933", "n04356056", "n02007558"):
            (tmp_path / "imagenet" / part / wnid).mkdir(parents=True)
    choices = TASKS["imagenet"]().choices(tmp_path)
    assert choices == ("flamingo", "missile", "projectile", "sunglass lens", "sunglasses")


def test_draws_depend_on_seed_and_example_alone():
    draws = [sampling.drawn(50, 4, 42, str(i)) for i in range(200)]
    assert draws[7] == sampling.drawn(50, 4, 42, "7")
    assert draws[7] != sampling.drawn(50, 4, 43, "7")
    assert all(len(set(draw)) == 4 for draw in draws)
    assert {i for draw in draws for i in draw} == set(range(50))
    examples = [Example(str(i), None, "") for i in range(30)]
    some = sampling.subset(examples, 7)
    assert [int(e.id) for e in some] == sorted(int(e.id) for e in some)
    assert {e.id for e in some} <= {e.id for e in sampling.subset(examples, 8)}


def test_the_shuffle_is_that_of_torch():
    torch = pytest.importorskip("torch")
    for size in (1, 2, 11, 500):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        assert sampling._torch_randperm(size).tolist() == order.tolist()


def test_the_task_that_contributing_shows_works(tmp_path):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = text.split("## Adding an evaluation task")[1].split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 40
    scope = {name: getattr(task_module, name) for name in dir(task_module)}
    scope |= {"read_json": read_json, "Iterator": Iterator, "Path": Path}
    exec(code, scope)
    task = scope["Birds"]()
    (tmp_path / "birds/images").mkdir(parents=True)
    (tmp_path / "birds/images/1.jpg").touch()
    entries = [{"file": "1.jpg", "name": "wren"}, {"file": "2.jpg", "name": "dodo"}]
    (tmp_path / "birds/test.json").write_text(json.dumps(entries))
    problems = DataErrors("skip")
    (example,) = read_split(task, tmp_path, "test", problems)
    assert (example.id, example.answer, example.references) == ("1.jpg", "wren", ("wren",))
    assert problems.counts == {"unknown class": 1}
    assert make_prompt(task, example, [example]).text == (
        "<image>Bird:wren<|endofchunk|>\n<image>Bird:"
    )
