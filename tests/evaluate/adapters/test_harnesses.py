"""Both harnesses run a local task, offline, with a small model."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from flamingo_jax.evaluate.adapters.zero_shot import ZeroShot
from tests.evaluate.adapters.conftest import COLOURS

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, and their libraries'

IMAGES = """
def image(document):
    from PIL import Image

    return [Image.open(document["image"]).convert("RGB")]
"""


def write_task(folder: Path, images: str | None, **settings) -> Path:
    """A task in both harnesses' format; `images` is the key that names the function for images."""
    folder.mkdir()
    (folder / "utils.py").write_text(IMAGES)
    text = yaml.safe_dump({"test_split": "test", "num_fewshot": 0, **settings})
    function = f"{images}: !function utils.image\n" if images else ""
    (folder / "task.yaml").write_text(text + function)
    return folder


def dataset(data: Path) -> dict:
    files = {"data_files": {"test": str(data / "test.jsonl")}}
    return {"dataset_path": "json", "dataset_kwargs": files}


def choices() -> dict:
    return {
        "task": "colour_choice", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip


def open_question(tokens: str) -> dict:
    return {
        "task": "colour", "output_type": "generate_until", "doc_to_target": "answer",
        "generation_kwargs": {tokens: 3, "until": ["\n"]},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def zero_shot(model):
    return ZeroShot(str(model))


def questions() -> list:
    return [("What colour is it?", [Image.new("RGB", (20, 16), c)]) for c in COLOURS]


def checked(evaluator, manager, model, zero_shot) -> float:
    """Run both tasks: answers are the model's. Gives the share of right choices."""
    found = evaluator.simple_evaluate(
        model="flamingo_jax",
        model_args=f"model={model}",
        tasks=["colour", "colour_choice"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    answers = {sample["doc_id"]: sample["resps"][0][0] for sample in found["samples"]["colour"]}
    assert [answers[i] for i in range(5)] == zero_shot.generate(questions(), 3, ["\n"])
    return found["results"]["colour_choice"]["acc,none"]


def right_choices(zero_shot, questions) -> float:
    """The share of questions whose right colour is the likeliest."""
    chosen = [
        max(COLOURS, key=lambda colour: zero_shot.loglikelihood(question, f" {colour}")[0])
        for question in questions
    ]
    return sum(map(str.__eq__, chosen, COLOURS)) / len(COLOURS)


def test_lm_evaluation_harness(model, data, tmp_path, zero_shot):
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    import flamingo_jax.evaluate.adapters.lm_evaluation_harness  # noqa: F401

    asked = {"doc_to_text": "<image>{{question}}", **dataset(data)}
    first = write_task(tmp_path / "a", "doc_to_image", **open_question("max_gen_toks"), **asked)
    second = write_task(tmp_path / "b", None, **choices(), **dataset(data))
    manager = TaskManager(include_path=[str(first), str(second)], include_defaults=False)
    accuracy = checked(evaluator, manager, model, zero_shot)
    text_only = [("What colour is it?", ()) for _ in COLOURS]
    assert accuracy == right_choices(zero_shot, text_only)


def test_lmms_eval_finds_the_model_by_its_entry_point(model, data, tmp_path, zero_shot):
    from lmms_eval import evaluator
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    assert get_model("flamingo_jax").__module__.startswith("flamingo_jax.")
    asked = {"doc_to_text": "question", **dataset(data)}
    tokens = "max_new_tokens"
    first = write_task(tmp_path / "a", "doc_to_visual", **open_question(tokens), **asked)
    second = write_task(tmp_path / "b", "doc_to_visual", **choices(), **dataset(data))
    manager = TaskManager(include_path=[str(first), str(second)], include_defaults=False)
    accuracy = checked(evaluator, manager, model, zero_shot)
    assert accuracy == right_choices(zero_shot, questions())
