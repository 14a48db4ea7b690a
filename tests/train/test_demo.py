import numpy as np
import pytest

from configs.eval import digits as digits_config
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate import demo_pictures
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.evaluate.harness import evaluate
from flamingo_jax.evaluate.tasks import TASKS
from flamingo_jax.generate.base import model_of_run
from flamingo_jax.models.params import model_graph
from flamingo_jax.schema import build
from flamingo_jax.text import digit_words
from flamingo_jax.text.tokenizer import load_tokenizer
from flamingo_jax.train import demo
from tests.conftest import random_params, small_config
from tests.evaluate.conftest import lines


def test_questions_are_fixed_and_balanced():
    task = TASKS["digit_names"](num_prompts=300)
    prompts = task.own_prompts(2, 0)
    assert prompts == task.own_prompts(2, 0)
    places = [e.choices.index(*e.references) for e, _ in prompts]
    assert abs(np.mean(places) - 0.5) < 0.1  # the place of the right answer tells nothing


def test_a_model_in_training_is_asked(tmp_path):
    config = small_config(vocab_size=40)
    model = model_of_run(
        model_graph(config), random_params(config), load_tokenizer("digits", 40), None
    )
    tasks = {"digits": {"split": "validation"}, "digit_names": {"num_prompts": 7}}
    evaluate(model, FewShotConfig(tasks=tasks, shots=(0, 1), num_samples=9), tmp_path)
    naming = lines(tmp_path / "digits/0-random-seed42/examples.jsonl")
    assert len(naming) == 9
    assert {r["prompt"] for r in naming} == {"<image>a handwritten "}
    (record, *_) = lines(tmp_path / "digits/1-random-seed42/examples.jsonl")
    assert record["prompt"].endswith("<|endofchunk|><image>a handwritten ")
    assert record["answer"] in digit_words.WORDS
    for record in lines(tmp_path / "digit_names/1-random-seed42/examples.jsonl"):
        assert len(record["images"]) == 3
        assert record["prompt"].count(record["answer"]) == 1  # one of the two names shown


def test_another_evaluation_than_the_demos_is_refused(tmp_path):
    config = FewShotConfig(tasks={"digits": {}})
    with pytest.raises(
        UserError, match=r"tasks digits and 1 seed.* give --config=configs/eval/digi"
    ):
        demo.evaluate(tmp_path, config)


def test_the_demos_settings_are_a_config_file():
    settings = build(FewShotConfig, digits_config.get_config().to_dict())
    assert settings == build(FewShotConfig, demo.SETTINGS)


def test_accuracy_by_hand():
    records = [{"score": score} for score in (100.0, 100.0, 100.0, 0.0)]
    assert demo.accuracy(records) == {
        "accuracy": 0.75,
        "stderr": np.sqrt(0.75 * 0.25 / 4),
        "n": 4,
    }


def test_the_table_says_every_figure():
    result = {"accuracy": 0.5, "stderr": 0.01, "n": 100}
    text = demo_pictures.table(result, {0: result, 1: {**result, "accuracy": 0.925}})
    assert "92.5%" in text
    assert "0 shots each" in text
    assert "1 shot " in text
