import numpy as np
import pytest
from PIL import Image

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.adapters.zero_shot import ZeroShot, open_model, request
from tests.evaluate.adapters.conftest import COLOURS


@pytest.fixture(scope="module")
def zero_shot(model):
    return ZeroShot(str(model), prompt="Question:{text} Short answer:", batch_size=3)


@pytest.fixture(scope="module")
def pictures():
    return [Image.new("RGB", (20, 16), colour) for colour in COLOURS]


def test_batches_do_not_change_answers(zero_shot, pictures):
    questions = [("What colour?", [p]) for p in pictures] + [
        ("No image", []),
        ("Two", pictures[:2]),
    ]
    together = zero_shot.generate(questions, 6)
    assert together == [zero_shot.generate([question], 6)[0] for question in questions]
    assert len(set(together)) > 1


def test_answers_end_before_a_stop(zero_shot, pictures):
    question = ("What colour?", pictures[:1])
    (whole,) = zero_shot.generate([question], 8)
    stop = whole[len(whole) // 2]
    assert zero_shot.generate([question], 8, [stop, "never"]) == [whole[: whole.index(stop)]]


def test_requests_are_answered_in_order(zero_shot, pictures):
    questions = [("What colour?", [picture]) for picture in pictures]
    limits = (2, 2, 5, 5, 2)
    requests = [
        request(question, {"until": "\n", "limit": limit}, "limit")
        for question, limit in zip(questions, limits, strict=True)
    ]
    assert requests[0].stops == ("\n",)
    assert zero_shot.answer(requests) == [
        zero_shot.generate([question], limit, ["\n"])[0]
        for question, limit in zip(questions, limits, strict=True)
    ]


def test_arguments_of_harnesses(model):
    given = {"batch_size": "2", "device": "cuda", "max_batch_size": None, "num_beams": 2}
    assert open_model(str(model), given).batch_size == 2
    with pytest.raises(TypeError, match="num_beam"):
        open_model(str(model), {"num_beam": 2})


def test_likelihoods_are_those_of_greedy_search(zero_shot, pictures):
    question = ("What colour?", pictures[:1])
    scored = [zero_shot.loglikelihood(question, f" {colour}") for colour in COLOURS]
    assert all(np.isfinite(logprob) and logprob < 0 for logprob, _ in scored)
    (greedy,) = zero_shot.generate([question], 1)
    logprob, is_greedy = zero_shot.loglikelihood(question, greedy)
    assert is_greedy
    assert logprob > max(logprob for logprob, _ in scored) or (logprob, True) in scored


def test_images_are_seen(zero_shot, pictures):
    first, second = (zero_shot.loglikelihood(("x", [p]), " red")[0] for p in pictures[:2])
    assert first != second


def test_unusable_questions_are_refused(model, zero_shot, pictures):
    with pytest.raises(UserError, match="1 images and 2 <image> marks"):
        zero_shot.generate([("<image><image>", pictures[:1])], 1)
    with pytest.raises(UserError, match="must contain"):
        ZeroShot(str(model), prompt="Question:")
