import numpy as np
import pytest

from flamingo_jax.text.documents import Document, Text, captioned
from flamingo_jax.text.template import (
    few_shot_text,
    join,
    learn_flags,
    prompt_text,
    render,
    training_pieces,
)
from flamingo_jax.text.tokenizer import load_tokenizer
from tests.golden_root import COMMITTED

PICTURE = b"any"


@pytest.fixture(scope="module")
def tokens():
    return load_tokenizer(str(COMMITTED / "openflamingo/mpt/tokenizer" / "tokenizer.json"), None)


def learnt(tokens, document: Document) -> str:
    """The text of the tokens that are learnt, those between two others apart."""
    pieces = training_pieces(document, tokens.end_of_text)
    text = "".join(piece.text for piece in pieces)
    encoding = tokens.tokenizer.encode(text)
    ids = np.array(encoding.ids)
    flags = learn_flags(pieces, encoding, ids, tokens.special, learn_begin=document.learn_ends)
    found, last = "", -1
    for index in np.flatnonzero(flags):
        found += ("" if index == last + 1 else "|") + text[slice(*encoding.offsets[index])]
        last = index
    return found


def test_render_ends_every_chunk_but_the_last():
    parts = (Text("see"), PICTURE, Text("dax"), PICTURE, Text("wug"))
    assert render(parts) == "see<image>dax<|endofchunk|><image>wug"


def test_a_question_is_read_and_its_answer_is_learnt(tokens):
    question = Text("Question: who? Answer:", learn=False)
    parts = (PICTURE, question, Text(" a cat"), PICTURE, question, Text(" two"))
    learned = learnt(tokens, Document("x", parts))
    assert learned.replace(" ", "") == "|acat<|endofchunk|>|two<|endofchunk|>"


def test_a_token_with_any_learnt_character_is_learnt(tokens):
    parts = (PICTURE, Text("what a ca", learn=False), Text("t"))
    text = learnt(tokens, Document("x", parts)).removesuffix("<|endofchunk|>")
    assert text.startswith("|")
    assert text.endswith("t")


def test_an_example_that_is_only_read_has_no_end_to_learn(tokens):
    parts = (PICTURE, Text("a dog", learn=False), PICTURE, Text("a cat"))
    assert learnt(tokens, Document("x", parts)).replace(" ", "") == "|acat<|endofchunk|>"


def test_a_caption_is_learnt_with_both_ends(tokens):
    found = learnt(tokens, captioned("x", (PICTURE, "a cat"))).replace(" ", "")
    assert found == f"|acat<|endofchunk|>{tokens.end_of_text}"


def test_prompts_of_parts_and_of_demonstrations_read_alike():
    shots = [(PICTURE, "one"), (PICTURE, "two<|endofchunk|>")]
    text = "<image>one<|endofchunk|><image>two<|endofchunk|><image>three"
    assert prompt_text(join(shots, [PICTURE, "three"])) == text
    assert few_shot_text([(True, "one"), (True, "<image>two")], (True, "three"), "") == text
    assert few_shot_text([(False, "one")], (False, "two"), "\n") == "one<|endofchunk|>\ntwo"
