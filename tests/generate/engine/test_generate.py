import jax
import numpy as np
import pytest

from flamingo_jax.generate.engine import decoding
from flamingo_jax.generate.engine.generate import GenerationConfig, generate, stream
from flamingo_jax.generate.engine.scoring import perplexity, score_continuations
from flamingo_jax.text.stop_strings import StopStrings
from tests.conftest import IMAGE, VOCAB, random_images

STOP = VOCAB  # <|endofchunk|>
PAD = VOCAB + 2


@pytest.fixture(scope="module")
def prompts():
    """Three rows with two, one and no image, padded on the left."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (3, 6)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[1, :2] = segments[2, :3] = 0
    tokens[0, [0, 3]] = tokens[1, 2] = IMAGE
    return random_images(rng, 3, 2, 1), tokens, segments


NUM_IMAGES = np.array([2, 1, 0])


def run(small, prompts, rows=slice(None), **settings):
    seeds, stop = settings.pop("seeds", range(3)), settings.pop("stop", None)
    config = GenerationConfig(**{"max_new_tokens": 6, "pad_token": PAD, **settings})
    return generate(
        small[0],
        small[1],
        *(x[rows] for x in prompts),
        config=config,
        num_images_B=NUM_IMAGES[rows],
        seeds=list(np.array(seeds)[rows]),
        stop=stop,
    )


def own_text(prompts, row):
    return prompts[1][row][prompts[2][row] == 1]


def log_probabilities(small, images, text, last):
    """Of every token at the `last` places of a text, in one pass over it."""
    length = len(text)
    padded, places = np.pad(text, (0, 12 - length)), np.arange(12)  # one shape, one compilation
    logits = FORWARD(small[0], small[1], images[None], padded[None], places[None] < length)
    return np.asarray(jax.nn.log_softmax(logits[0]))[length - 1 - last : length - 1]


FORWARD = jax.jit(
    lambda graph, params, images, text, valid: graph.merge(params)(
        images, text, valid.astype(np.int32)
    ),
    static_argnums=0,
)


def test_greedy_tokens_are_the_likeliest(small, prompts):
    made = run(small, prompts)
    for row in range(3):
        (sequence,) = made.sequences(row)
        text = np.concatenate([own_text(prompts, row), sequence])
        logp = log_probabilities(small, prompts[0][row], text, len(sequence))
        allowed = np.where(np.arange(logp.shape[1]) == IMAGE, -np.inf, logp)
        assert allowed.argmax(axis=1).tolist() == sequence
        own = logp[np.arange(len(sequence)), sequence]
        np.testing.assert_allclose(made.logprobs_BRN[row, 0, : len(sequence)], own, atol=1e-5)
        np.testing.assert_allclose(made.scores_BR[row, 0], own.sum(), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"temperature": 1.3, "top_k": 9, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    ],
    ids=["greedy", "beams", "sampled"],
)
def test_a_mixed_batch_is_each_row_alone(small, prompts, settings):
    together = run(small, prompts, **settings)
    for row in range(3):
        alone = run(small, prompts, slice(row, row + 1), **settings)
        assert alone.sequences(0) == together.sequences(row)
        np.testing.assert_allclose(alone.scores_BR[0], together.scores_BR[row], atol=1e-4)


def test_a_second_call_of_a_bucket_compiles_nothing(small, prompts):
    """Other texts, lengths and numbers."""
    programs = (decoding.run_prompt, decoding.first_token, decoding.more_tokens)
    run(small, prompts, temperature=0.7, repetition_penalty=1.1)
    before = [program._cache_size() for program in programs]
    images, tokens, segments = (x[::-1] for x in prompts)
    tokens = np.where(tokens == IMAGE, 4, tokens)[:, 1:]
    config = GenerationConfig(
        max_new_tokens=7, temperature=1.2, top_p=0.8, repetition_penalty=1.3, stop_tokens=(3, STOP)
    )
    generate(*(small[0], small[1], images, tokens, segments[:, 1:]), config=config, seeds=[5, 6, 7])
    assert [program._cache_size() for program in programs] == before


def test_a_stop_token_ends_its_row_and_no_other(small, prompts):
    free = run(small, prompts, stop_tokens=())
    assert (free.lengths_BR == 6).all()
    stop = int(free.tokens_BRN[0, 0, 2])
    made = run(small, prompts, stop_tokens=(stop,))
    for row in range(3):
        whole = free.tokens_BRN[row, 0].tolist()
        expected = whole[: whole.index(stop) + 1] if stop in whole else whole
        assert made.sequences(row) == [expected]
        assert (made.tokens_BRN[row, 0, len(expected) :] == PAD).all()
    later = run(small, prompts, stop_tokens=(stop,), min_new_tokens=6)
    assert (later.lengths_BR == 6).all()
    assert (later.tokens_BRN[:, 0, :6] != stop).all()


def spell(tokens):
    """Two letters a token, so that strings lie across tokens."""
    return "".join(chr(97 + t // 6) + chr(65 + t % 6) for t in tokens)


def test_a_string_ends_its_row_wherever_its_tokens_lie(small, prompts):
    settings = {"stop_tokens": (), "max_new_tokens": 12, "temperature": 3.0}
    free = run(small, prompts, **settings)
    first = spell(free.tokens_BRN[0, 0])
    string = first[3:5]  # the end of the second token and the beginning of the third
    stop = StopStrings((string, "never"), spell)
    made = run(small, prompts, stop=stop, **settings)
    for row in range(3):
        whole = free.tokens_BRN[row, 0].tolist()
        ends = [n for n in range(1, 13) if string in spell(whole[:n])]
        expected = whole[: ends[0]] if ends else whole
        assert made.sequences(row) == [expected]
        assert stop.text(expected) == spell(whole).split(string)[0]
        assert (made.logprobs_BRN[row, 0, len(expected) :] == 0).all()
    assert made.lengths_BR[0, 0] <= 3
    with pytest.raises(ValueError, match="beams end at stop tokens only"):
        run(small, prompts, stop=stop, num_beams=2)
    with pytest.raises(ValueError, match="none empty"):
        StopStrings(("",), spell)


def test_image_marks_come_only_where_they_are_allowed(small, prompts):
    everything_else = tuple(t for t in range(VOCAB + 3) if t not in (IMAGE, 5))
    made = run(small, prompts, bad_tokens=everything_else, temperature=5.0)
    assert (made.tokens_BRN == IMAGE).any()
    made = run(small, prompts, temperature=50.0, num_return_sequences=3, max_new_tokens=8)
    assert not (made.tokens_BRN == IMAGE).any()


def test_a_mark_that_is_generated_shows_the_next_image(small, prompts):
    images, tokens, segments = (x[:1] for x in prompts)
    tokens = tokens.copy()
    tokens[0, 3] = 0  # leaves the second image for later
    repainted = images.copy()
    repainted[0, 1] = 7

    def second_logprob(images, **settings):
        made = run(small, (images, tokens, segments), slice(1), stop_tokens=(), **settings)
        return made.tokens_BRN[0, 0, 0], made.logprobs_BRN[0, 0, 1]

    only_marks = {"bad_tokens": tuple(t for t in range(VOCAB + 3) if t != IMAGE)}
    (mark, before), (_, after) = (second_logprob(x, **only_marks) for x in (images, repainted))
    assert mark == IMAGE
    assert before != after
    assert second_logprob(images) == second_logprob(repainted)


def test_seeds_choose_the_samples(small, prompts):
    settings = {"temperature": 1.0, "num_return_sequences": 2, "stop_tokens": ()}
    first, again = (run(small, prompts, **settings) for _ in range(2))
    np.testing.assert_array_equal(first.tokens_BRN, again.tokens_BRN)
    other = run(small, prompts, seeds=[0, 9, 2], **settings)
    assert (other.tokens_BRN == first.tokens_BRN).all(axis=(1, 2)).tolist() == [True, False, True]
    assert (first.tokens_BRN[:, 0] != first.tokens_BRN[:, 1]).any(axis=1).all()


def test_streaming_ends_with_what_generate_returns(small, prompts):
    config = GenerationConfig(max_new_tokens=6, pad_token=PAD, stop_tokens=())
    inputs = small[0], small[1], *prompts
    parts = list(stream(*inputs, config=config, every=2))
    assert [part.lengths_BR.max() for part in parts] == [1, 3, 5, 6]
    last = generate(*inputs, config=config)
    for part in parts:
        length = part.lengths_BR.max()
        np.testing.assert_array_equal(part.tokens_BRN[..., :length], last.tokens_BRN[..., :length])


def test_scores_of_continuations_are_those_of_the_whole_texts(small, prompts):
    continuations = [[3], [4, 5, 6], [7, 7, 7, 7], [3, STOP], [9]]
    images, tokens, segments = prompts
    scores = score_continuations(
        small[0], small[1], images[:1], tokens[:1], segments[:1], continuations, at_once=2
    )
    for index, continuation in enumerate(continuations):
        text = np.concatenate([own_text(prompts, 0), continuation])
        logp = log_probabilities(small, images[0], text, len(continuation))
        own = logp[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(scores.sums_BC[0, index], own.sum(), atol=1e-4)
        np.testing.assert_allclose(scores.means_BC[0, index], own.mean(), atol=1e-4)


def test_perplexity_counts_what_is_predicted(small, prompts):
    images, tokens, segments = prompts
    got = perplexity(small[0], small[1], images, tokens, segments)
    for row in range(3):
        text = own_text(prompts, row)
        logp = log_probabilities(small, images[row], text, len(text) - 1)
        own = logp[np.arange(len(text) - 1), text[1:]][text[1:] != IMAGE]
        np.testing.assert_allclose(got[row], np.exp(-own.mean()), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0.0}, "top_p is 0.0, which is out of its range"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"num_return_sequences": 2}, "2 with 1 beam"),
        ({"stop_tokens": (99,)}, "stop_tokens has 99, the vocabulary has 33 tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(small, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        run(small, prompts, **settings)


def test_prompts_that_cannot_be_are_refused(small, prompts):
    images, tokens, segments = prompts
    inputs = small[0], small[1], images, tokens
    with pytest.raises(ValueError, match="row 1 ends with padding"):
        generate(*inputs, segments[:, ::-1])
    with pytest.raises(ValueError, match="row 0 has 2 <image> tokens but 1 images"):
        generate(*inputs, segments, num_images_B=np.array([1, 1, 0]))
    with pytest.raises(ValueError, match="one row of each for every prompt"):
        generate(small[0], small[1], images[:2], tokens, segments)
    with pytest.raises(ValueError, match="there are 1 seeds for 3 prompts"):
        generate(*inputs, segments, seeds=[4])
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"a seed is {seed}: give whole numbers from 0 to"):
            generate(*inputs, segments, seeds=[0, seed, 1])
    with pytest.raises(ValueError, match="none without tokens"):
        score_continuations(*inputs, segments, [[1], []])
    with pytest.raises(ValueError, match="row 0 has no token to predict"):
        perplexity(small[0], small[1], images[:1], tokens[:1, :1])
    with pytest.raises(ValueError, match="cannot be streamed"):
        stream(*inputs, segments, config=GenerationConfig(num_beams=2))
