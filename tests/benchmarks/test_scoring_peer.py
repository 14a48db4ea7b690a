import numpy as np
import pytest

from benchmarks import evaluation, report, scoring_peer
from flamingo_jax.evaluate.metrics.vqa import normalize


def test_made_answers_ask_for_every_rule():
    """Numbers, articles, contractions and punctuation change; people agree in some cases only."""
    answers = {answer: normalize(answer) for answer in evaluation.ANSWERS}
    assert {"two", "a dog", "dont know", "red, white"} <= {a for a, n in answers.items() if a != n}
    assert answers == {answer: scoring_peer.normalize(answer) for answer in answers}
    scores = [scoring_peer.vqa_accuracy(*question) for question in evaluation.made_answers(200)]
    assert {0.0, 1.0} < set(np.round(scores, 6))


def test_scores_that_differ_are_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(scoring_peer, "vqa_accuracy", lambda prediction, answers: 0.5)
    with pytest.raises(SystemExit, match="VQA accuracy: the two do not agree"):
        evaluation.score_answers(None, count=20, turns=1)
    assert report.torch_device("tpu") is None
