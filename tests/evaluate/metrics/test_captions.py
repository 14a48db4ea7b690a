import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.metrics.bleu import bleu
from flamingo_jax.evaluate.metrics.cider import cider, tokenize
from flamingo_jax.evaluate.metrics.rouge import longest_common_subsequence, rouge_l
from tests.evaluate import goldens

GOLDEN = goldens.load("golden_cider.json")
CORPORA = GOLDEN["corpora"]


def texts(corpus: dict) -> tuple[dict, dict]:
    items = corpus["items"]
    return {i["id"]: i["candidate"] for i in items}, {i["id"]: i["references"] for i in items}


def test_tokens_are_the_golden_ones():
    lines = {case["raw"]: case["tokens"] for case in GOLDEN["tokenizer"]}
    for corpus in CORPORA.values():
        for item in corpus["items"]:
            lines[item["candidate"]] = item["candidate_tokens"]
            lines |= dict(zip(item["references"], item["reference_tokens"], strict=True))
    assert {raw: tokenize(raw) for raw in lines} == lines


# What the original says of these, each on a line of its own.
@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        ("a man (red) [x] {y}", "a man -lrb- red -rrb- -lsb- x -rsb- -lcb- y -rcb-"),
        ("wow!! what?! yes!!!", "wow !! what ?! yes !!!"),
        ("a 😀 face 👍🏽 and ❤", "a face and ❤"),
        ("don’t, “quoted”, it’s; O’Malley", "do n't quoted it 's o’malley"),
        ("“‘x’”", "``` x '''"),
        ("‚a‘ „b“", "‚ a „ b"),
        ("ill. Ill. mass. Mass. La. la.", "ill ill. mass mass. la. la"),
        ("no. 5 no.5 fig. 3 Rs. 5 arts. 5", "no. 5 no. 5 fig. 3 rs 5 arts 5"),
        ("plan B. The man and plan B. then", "plan b the man and plan b. then"),
        ("3 1/2 ⅕ ½ 2/3rds 1:23:4 -5", "3\u00a01/2 ⅕ 1/2 2/3rds 1:23:4 -5"),
        ("call (555) 123-4567", "call -lrb-555-rrb-\u00a0123-4567"),
        ("cost ¢5 €7 £8 ¥6 $5.99", "cost cents 5 $ 7 # 8 ¥ 6 $ 5.99"),
        ("at&t AT&T R&B &amp; &lt;b&gt;", "at & t at&t r&b & < b >"),
        ("<b>x</b> <a href=x>", "<b> x </b> < a href = x >"),
        ("<img src='a b'>", "<img\u00a0src='a\u00a0b'>"),
        ("www.abc.com http://a.com/b?c", "www.abc.com http://a.com/b?c"),
        ("a@b.com. @joe #tag1", "a@b.com @joe #tag 1"),
        (":) ;-) ^_^ <3 ;o'clock", ":-rrb- ;--rrb- ^_^ < 3 o'clock"),
        ("'90s '98 rock 'n' roll o'clock y'all", "'90s '98 rock 'n' roll o'clock y' all"),
        ("c++ c# a | b \\ c ~ ^ == ° × ™", "c++ c# a | b \\ c ~ ^ = = ° × ™"),
        ("a/b/c/d ex-U.S. U.S.-based 6-foot a_b", "a/b/c / d ex-u.s. u.s.-based 6-foot a_b"),
        ("5a.jpg's 3D.c'est ’99", "5a jpg 's 3d c'est ’99"),
        ("dunno cannot Gonna GIMME 'tis 'twas", "dunno can not gon na gim me 't is 't was"),
        ("soft\u00adhyphen non\u00a0break zero\u200bwidth", "softhyphen non break zero width"),
    ],
)  # fmt: skip
def test_tokens_of_rare_text(raw, tokens):
    assert tokenize(raw) == tokens


@pytest.mark.parametrize("separator", ["\n", "\r", "\u2028", "\u2029", "\x0b", "\x0c", "\x85"])
def test_a_line_separator_is_a_space(separator):
    assert tokenize(f"a dog{separator}sits") == "a dog sits"


@given(st.text(max_size=40))
def test_any_text_has_tokens(text):
    line = tokenize(text)
    assert line == line.strip(" ")
    assert not {".", ",", "?", "!", "'", "..."} & set(line.split(" "))
    assert "\n" not in line


@given(st.lists(st.sampled_from(["dog", "Runs", "isn't", "(red)", "3", "U.S.", "!!"]), max_size=6))
def test_words_do_not_depend_on_their_neighbours(words):
    assert tokenize(" ".join(words)).split() == [t for w in words for t in tokenize(w).split()]


@pytest.mark.parametrize("name", CORPORA)
def test_scores_are_the_golden_ones(name):
    corpus = CORPORA[name]
    candidates, references = texts(corpus)
    score, each = cider(candidates, references)
    assert score == pytest.approx(corpus["cider"], abs=1e-9)
    assert each == pytest.approx({i["id"]: i["cider"] for i in corpus["items"]}, abs=1e-9)
    assert bleu(candidates, references) == pytest.approx(corpus["bleu"], abs=1e-12)
    assert rouge_l(candidates, references)[0] == pytest.approx(corpus["rouge_l"], abs=1e-12)


def test_references_of_other_images_do_not_count():
    candidates, references = texts(next(iter(CORPORA.values())))
    assert cider(candidates, references | {"other": ["a bird"]}) == cider(candidates, references)


@pytest.mark.parametrize("metric", [cider, bleu, rouge_l])
def test_what_cannot_be_scored_is_said(metric):
    with pytest.raises(UserError, match="1 of 2 captions have no references, the first is 'b'"):
        metric({"a": "x", "b": "y"}, {"a": ["x"], "b": []})
    with pytest.raises(UserError, match="no captions"):
        metric({}, {})


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_common_subsequence(a, b):
    length = longest_common_subsequence(a, b)
    assert length == longest_common_subsequence(b, a) <= min(len(a), len(b))
    assert longest_common_subsequence(a, a + b) == len(a)
    assert longest_common_subsequence(a + "x", "x" + b) >= max(length, 1)


def test_nothing_in_common_scores_zero():
    candidates, references = {1: "purple", 2: ""}, {1: ["a dog"], 2: ["a cat"]}
    assert cider(candidates, references)[0] == 0
    assert rouge_l(candidates, references)[0] == 0
    assert all(math.isclose(score, 0, abs_tol=1e-3) for score in bleu(candidates, references))
