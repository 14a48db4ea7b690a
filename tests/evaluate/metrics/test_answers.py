import math
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.evaluate.metrics.roc_auc import roc_auc
from flamingo_jax.evaluate.metrics.stemming import make_stemmer, singular, verb
from flamingo_jax.evaluate.metrics.stemming import postprocess as postprocess_and_stem
from flamingo_jax.evaluate.metrics.vqa import normalize, postprocess, vqa_accuracy
from tests.evaluate import goldens

GOLDEN = goldens.load("golden_vqa.json")
CASES = GOLDEN["cases"]


def test_normalised_answers_are_the_golden_ones():
    pairs = {case["in"]: case["out"] for case in GOLDEN["normalise"]}
    for case in CASES:
        pairs[case["prediction"]] = case["prediction_normalised"]
        answers = [answer["answer"] for answer in case["answers"]]
        pairs |= dict(zip(answers, case["answers_normalised"], strict=True))
    assert {answer: normalize(answer) for answer in pairs} == pairs


@pytest.mark.parametrize(
    ("mode", "score"),
    [
        ("standard", "score_index_loo"),
        ("openflamingo", "score_of"),
        ("official", "score_official"),
    ],
)
def test_accuracies_are_the_golden_ones(mode, score):
    ours = {case["id"]: vqa_accuracy(case["prediction"], case["answers"], mode) for case in CASES}
    assert ours == pytest.approx({case["id"]: case[score] for case in CASES}, abs=1e-12)


def test_golden_generations_become_answers():
    for case in CASES:
        if case["dataset"] == "ok_vqa":
            answer = postprocess_and_stem(case["generation"])
        else:
            answer = postprocess(case["generation"])
        assert answer == case["prediction"], case["generation"]


def test_texts_are_distinct_records():
    answers = ["yes"] * 3 + ["no"] * 7
    for mode in ("standard", "openflamingo", "official"):
        assert vqa_accuracy("yes", answers, mode) == pytest.approx(0.9)


def test_unusable_calls_are_refused():
    with pytest.raises(ValueError, match="answers"):
        vqa_accuracy("yes", [])
    with pytest.raises(ValueError, match="vqav3"):
        vqa_accuracy("yes", ["yes"] * 10, "vqav3")


@given(st.lists(st.text(max_size=6), min_size=1, max_size=10), st.randoms())
def test_the_order_of_answers_does_not_matter(answers, random):
    shuffled = random.sample(answers, len(answers))
    for mode in ("standard", "openflamingo", "official"):
        score = vqa_accuracy(answers[0], answers, mode)
        assert score == pytest.approx(vqa_accuracy(answers[0], shuffled, mode))
        assert 0 <= score <= 1


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("running", "run"), ("biking", "bike"), ("skateboarding", "skateboard"), ("eating", "eat"),
        ("handling", "handle"), ("string", "string"), ("locating", "locate"), ("sitting", "sit"),
        ("racing", "race"), ("falling", "fall"), ("surfing", "surf"), ("driving", "drive"),
        ("king", "king"), ("grazing", "graze"), ("snowing", "snow"), ("cleaning", "clean"),
    ],
)  # fmt: skip
def test_verbs(word, stem):
    assert verb(word) == stem


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("dogs", "dog"), ("cherries", "cherry"), ("boxes", "box"), ("knives", "knife"),
        ("wolves", "wolf"), ("shoes", "shoe"), ("potatoes", "potato"), ("women", "woman"),
        ("sheep", "sheep"), ("buses", "bus"), ("glasses", "glass"), ("series", "series"),
    ],
)  # fmt: skip
def test_singulars(word, stem):
    assert singular(word) == stem


class FakeNltk(types.ModuleType):
    """nltk with its data: every word is a plural noun, and every lemma is known."""

    __version__ = "9.9"

    def __init__(self, has_data: bool):
        super().__init__("nltk")
        self.corpus = types.ModuleType("nltk.corpus")
        self.corpus.wordnet = types.SimpleNamespace(ensure_loaded=lambda: None)
        lemmatizer = types.SimpleNamespace(lemmatize=lambda word, kind: f"{kind}:{word}")
        self.stem = types.SimpleNamespace(WordNetLemmatizer=lambda: lemmatizer)
        self.has_data = has_data

    def pos_tag(self, words: list[str]) -> list[tuple[str, str]]:
        if not self.has_data:
            raise LookupError("averaged_perceptron_tagger")
        return [(word, "NNS") for word in words]


@pytest.mark.parametrize(
    ("has_data", "name", "stem"),
    [(True, "nltk 9.9 with WordNet", "v:string"), (False, "built-in", "string")],
)
def test_nltk_is_used_where_its_data_is(monkeypatch, has_data, name, stem):
    fake = FakeNltk(has_data)
    monkeypatch.setitem(sys.modules, "nltk", fake)
    monkeypatch.setitem(sys.modules, "nltk.corpus", fake.corpus)
    stemmer = make_stemmer.__wrapped__()
    assert stemmer.name == name
    assert stemmer.stem("string jeans christmas") == f"{stem} jean christmas"


def test_areas_are_the_golden_ones():
    for case in goldens.load("golden_auc.json")["cases"]:
        labels = [label == "yes" for label in case["labels"]]
        assert roc_auc(labels, case["p_yes"]) == pytest.approx(case["roc_auc"], abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=20))
def test_area_counts_pairs(examples):
    positives = [score for label, score in examples if label]
    negatives = [score for label, score in examples if not label]
    if not positives or not negatives:
        return
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    area = roc_auc([label for label, _ in examples], [score for _, score in examples])
    assert area == pytest.approx(wins / (len(positives) * len(negatives)))


def test_one_class_has_no_area():
    with pytest.warns(UserWarning, match="given 2 positive and 0 negative"):
        assert math.isnan(roc_auc([1, 1], [0.1, 0.2]))


def test_broken_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        roc_auc([0, 1], [0.5, float("nan")])
    with pytest.raises(ValueError, match="0 or 1"):
        roc_auc([0, 2], [0.5, 0.1])
