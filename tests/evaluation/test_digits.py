import numpy as np

from flamingo_jax.data.tokenizer import load_tokenizer
from flamingo_jax.evaluation import digits, report
from flamingo_jax.models.params import flamingo_graph
from tests.conftest import random_params, small_config


def test_questions_are_fixed_and_balanced():
    questions = digits.binding_questions(2, 300, seed=0)
    again = digits.binding_questions(2, 300, seed=0)
    assert [(q.choices, q.right) for q in questions] == [(q.choices, q.right) for q in again]
    # The place of the right answer tells nothing.
    assert abs(np.mean([q.right for q in questions]) - 0.5) < 0.1
    assert len(digits.naming_questions("held_out")) == 397


def test_answers_do_not_depend_on_the_batch_size():
    config = small_config(vocab_size=40)
    graph, params = flamingo_graph(config), random_params(config)
    questions = digits.binding_questions(1, 7, seed=0)

    def choices(batch_size):
        answered = digits.answer(
            graph,
            params,
            load_tokenizer("digits", 40),
            questions,
            image_size=8,
            batch_size=batch_size,
        )
        return [a.choice for a in answered]

    assert choices(7) == choices(3)


def test_score_by_hand():
    question = digits.binding_questions(0, 1, seed=0)[0]
    answers = [digits.Answered(question, choice) for choice in (question.right,) * 3]
    answers.append(digits.Answered(question, 1 - question.right))
    assert digits.score(answers) == {"accuracy": 0.75, "stderr": np.sqrt(0.75 * 0.25 / 4), "n": 4}


def test_the_table_says_every_figure():
    result = {"accuracy": 0.5, "stderr": 0.01, "n": 100}
    text = report.table(result, {0: result, 1: {**result, "accuracy": 0.925}})
    assert "92.5%" in text
    assert "0 shots each" in text
    assert "1 shot " in text
