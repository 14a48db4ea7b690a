"""A loaded model is asked; the functions below it have tests of their own."""

import itertools

import jax
import numpy as np
import pytest

import flamingo_jax
from flamingo_jax.data import digits
from flamingo_jax.errors import UserError
from flamingo_jax.generate.engine import generate as generation
from flamingo_jax.generate.engine import scoring
from flamingo_jax.parallel.mesh import MeshConfig, make_mesh
from flamingo_jax.text import digit_words

SCANS = digits.scans("held_out")[0]
PROMPT = [SCANS[0], "dax", SCANS[1], "wug", SCANS[2]]
SHORT = {"max_new_tokens": 4}


def arrays(flamingo):
    """The prompt without any of the code under test."""
    tokenizer = digit_words.tokenizer()
    dax, wug = (tokenizer.token_to_id(word) for word in ("dax", "wug"))
    end, image = flamingo.config.end_of_chunk_token, flamingo.config.image_token
    tokens = np.array([[image, dax, end, image, wug, end, image]])
    return SCANS[None, :3, None], tokens


def test_generate_gives_what_the_model_says(flamingo):
    text = flamingo.generate(PROMPT, **SHORT)
    (said,) = flamingo.generate([PROMPT], details=True, **SHORT)
    config = flamingo.generation_config(**SHORT)
    made = generation.generate(flamingo.graph, flamingo.params, *arrays(flamingo), config=config)
    assert said.tokens == tuple(made.sequences(0)[0])
    assert text == said.text == flamingo.processor.tokenizer.decode(said.tokens).strip()
    np.testing.assert_allclose(said.logprobs, made.logprobs_BRN[0, 0, : len(said.tokens)])
    assert said.score == pytest.approx(sum(said.logprobs), abs=1e-4)


def test_examples_are_the_prompt_written_out(flamingo):
    examples = [(SCANS[0], "dax"), (SCANS[1], "wug")]
    few_shot, plain = (
        flamingo.generate(*query, details=True, **SHORT)
        for query in ((SCANS[2], examples), (PROMPT,))
    )
    assert few_shot == plain


def test_a_batch_gives_each_prompt_its_own_answer(flamingo):
    query = [PROMPT, ["a handwritten"], [SCANS[3], "a handwritten"]]
    together = flamingo.generate(query, details=True, **SHORT)
    alone = [flamingo.generate(prompt, details=True, **SHORT) for prompt in query]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    read = [flamingo.read(prompt) for prompt in query]
    assert flamingo.generate(read, **SHORT) == [c.text for c in alone]


def test_several_sequences_and_seeds(flamingo):
    settings = {"temperature": 3.0, "num_return_sequences": 3, "stop_tokens": (), **SHORT}
    first = flamingo.generate(PROMPT, seed=3, **settings)
    assert len(set(first)) > 1
    assert flamingo.generate([["zero"], PROMPT], seed=2, **settings)[1] == first
    beams = flamingo.generate(PROMPT, num_beams=3, num_return_sequences=2, details=True, **SHORT)
    assert beams[0].score >= beams[1].score


def test_a_stream_grows_to_the_answer(flamingo):
    parts = list(flamingo.stream(PROMPT, stop_tokens=(), **SHORT))
    assert len(parts) == 4
    assert parts[-1] == flamingo.generate(PROMPT, stop_tokens=(), **SHORT)
    for shorter, longer in itertools.pairwise(parts):
        assert longer.startswith(shorter)
    batch = list(flamingo.stream([PROMPT, ["zero"]], stop_tokens=(), **SHORT))
    assert batch[-1][0] == parts[-1]


def test_a_string_ends_a_text(flamingo):
    settings = {"max_new_tokens": 8, "stop_tokens": ()}
    whole = flamingo.generate(PROMPT, **settings)
    stop = whole[len(whole) // 2 :][:3]  # in the midst of a word, or across two
    expected = whole[: whole.find(stop)]
    ended = flamingo.generate(PROMPT, stop=[stop], details=True, **settings)
    assert ended.text == expected
    assert len(ended.tokens) < 8 or not whole[whole.find(stop) + 3 :]
    parts = list(flamingo.stream(PROMPT, stop=[stop], **settings))
    assert parts[-1] == expected
    for shorter, longer in itertools.pairwise(parts):
        assert longer.startswith(shorter)
    for wrong in ("Output", [""]):
        with pytest.raises(UserError, match="stop"):
            flamingo.generate(PROMPT, stop=wrong)
    with pytest.raises(UserError, match="beams end at stop tokens only"):
        flamingo.generate(PROMPT, stop=["x"], num_beams=2)


def test_classify_chooses_the_likeliest(flamingo):
    choices = ["dax", "a handwritten two", "zero"]
    chosen = flamingo.classify(PROMPT, choices, details=True)
    ids = [digit_words.tokenizer().encode(choice).ids for choice in choices]
    images, tokens = arrays(flamingo)
    scores = scoring.score_continuations(flamingo.graph, flamingo.params, images, tokens, None, ids)
    np.testing.assert_allclose(list(chosen.logprobs.values()), scores.sums_BC[0], rtol=1e-5)
    assert chosen.text == choices[scores.sums_BC[0].argmax()]
    assert sum(chosen.probabilities.values()) == pytest.approx(1)
    assert flamingo.classify([PROMPT, PROMPT], choices) == [chosen.text] * 2
    by_token = flamingo.classify(PROMPT, choices, normalize=True)
    assert by_token == choices[scores.means_BC[0].argmax()]


def test_perplexity_of_documents(flamingo):
    images, tokens = arrays(flamingo)
    expected = scoring.perplexity(flamingo.graph, flamingo.params, images, tokens)
    assert flamingo.perplexity(PROMPT) == pytest.approx(expected[0], rel=1e-5)
    both = flamingo.perplexity([PROMPT, [SCANS[0], "dax"]])
    np.testing.assert_allclose(both[0], expected[0], rtol=1e-4)
    assert flamingo.perplexity([SCANS[0], "dax"]) == pytest.approx(both[1], rel=1e-4)


def test_a_video_is_one_medium(flamingo):
    frames = list(SCANS[:2])
    whole = flamingo.generate([frames, "a"], details=True, **SHORT)
    array = flamingo.generate([SCANS[:2], "a"], details=True, **SHORT)
    assert whole == array
    assert whole.logprobs != flamingo.generate([frames[0], "a"], details=True, **SHORT).logprobs


def test_a_mesh_gives_the_same_answers(flamingo, model_dir):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    sharded = flamingo_jax.load(model_dir, mesh=mesh)
    query = [PROMPT, ["zero"]]
    alone, spread = (m.generate(query, details=True, **SHORT) for m in (flamingo, sharded))
    for one, eight in zip(alone, spread, strict=True):
        assert one.tokens == eight.tokens
        np.testing.assert_allclose(one.logprobs, eight.logprobs, atol=1e-4)
    assert list(sharded.stream(PROMPT, **SHORT))[-1] == alone[0].text
    assert sharded.classify(PROMPT, ["dax", "zero"]) == flamingo.classify(PROMPT, ["dax", "zero"])


BAD = {
    "an unknown setting": ({"temprature": 1}, "did you mean 'temperature'?"),
    "a setting out of range": ({"top_p": 2.0}, "top_p is 2.0, which is out of its range"),
    "a setting of the wrong type": ({"temperature": "hot"}, "not supported between"),
    "two sequences from one beam": ({"num_return_sequences": 2}, "set num_beams as high"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(flamingo, case):
    settings, message = BAD[case]
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        flamingo.generate("zero", **settings)


def test_what_cannot_be_asked_is_refused(flamingo):
    with pytest.raises(UserError, match="give a list of texts, none of them empty"):
        flamingo.classify(PROMPT, [])
    with pytest.raises(UserError, match="beam search cannot be streamed"):
        list(flamingo.stream(PROMPT, num_beams=2))
    with pytest.raises(UserError, match="'dax' is no picture"):
        flamingo.read([PROMPT, PROMPT])
    with pytest.raises(UserError, match="has no token to predict"):
        flamingo.perplexity("zero")
