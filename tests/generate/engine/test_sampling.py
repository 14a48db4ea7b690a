import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.generate.engine.sampling import (
    SamplingParams,
    apply_penalties,
    draw,
    filter_top_k_top_p,
    repeated_ngrams,
)

VOCAB = 6


def knobs(**changes):
    none = np.zeros(VOCAB, bool)
    defaults = dict.fromkeys(("temperature", "top_p", "repetition_penalty", "length_penalty"), 1.0)
    defaults |= dict.fromkeys(("top_k", "min_p", "min_new_tokens", "prompt_width", "pad_token"), 0)
    defaults |= {"max_new_tokens": 8, "is_stop_V": none, "is_bad_V": none}
    defaults |= {"keys_B": jax.random.split(jax.random.key(0), 2)}
    return SamplingParams(**jax.tree.map(jnp.asarray, defaults | changes))


SCORES = np.array([[1.0, 3.0, -2.0, 2.5, 0.0, 2.9], [0.3, -0.1, 0.2, 5.0, -4.0, 0.25]], np.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 2},
        {"top_k": 20},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.3},
        {"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_filters_are_those_of_transformers(settings):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    warpers = {
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }
    expected = torch.from_numpy(SCORES)
    for name, value in settings.items():
        expected = warpers[name](value)(None, expected)
    got = jax.jit(filter_top_k_top_p)(SCORES, knobs(**settings))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


RESTRICT = jax.jit(
    lambda scores, history, valid, *, size: apply_penalties(
        scores,
        history,
        valid,
        jnp.int32(3),
        jnp.int32(7),
        knobs(repetition_penalty=1.7),
        repetition=True,
        no_repeat_ngram=size,
    ),
    static_argnames="size",
)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@given(
    rows=st.lists(
        st.lists(st.integers(0, VOCAB - 1), min_size=3, max_size=7), min_size=1, max_size=3
    )
)
def test_penalties_are_those_of_transformers(size, rows):
    """Each row alone there; here padded on the left with a token that it has not."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    length, rng = 7, np.random.default_rng(len(rows))
    history = np.zeros((3, length + 2), np.int32)
    valid = np.zeros(history.shape, bool)
    rows = (rows * 3)[:3]
    for i, row in enumerate(rows):
        history[i, length - len(row) : length], valid[i, length - len(row) : length] = row, True
    scores = rng.normal(size=(3, VOCAB)).astype(np.float32)
    got = RESTRICT(scores, history, valid, size=size)
    for i, row in enumerate(rows):
        expected = theirs.RepetitionPenaltyLogitsProcessor(1.7)(
            torch.tensor([row]), torch.from_numpy(scores[i : i + 1])
        )
        if size:
            expected = theirs.NoRepeatNGramLogitsProcessor(size)(torch.tensor([row]), expected)
        np.testing.assert_allclose(got[i], expected[0], rtol=1e-6)


def test_ngrams_longer_than_the_history_ban_nothing():
    history = jnp.zeros((1, 3), jnp.int32)
    banned = repeated_ngrams(history, history == 0, jnp.int32(3), size=5, vocab_size=VOCAB)
    assert not banned.any()


def test_bad_tokens_never_and_stop_tokens_not_too_early():
    stop, bad = np.arange(VOCAB) == 1, np.arange(VOCAB) == 3
    numbers = knobs(is_stop_V=stop, is_bad_V=bad, min_new_tokens=2)
    empty = jnp.zeros((2, 0), jnp.int32)
    for step, banned in ((0, {1, 3}), (1, {1, 3}), (2, {3})):
        got = apply_penalties(
            jnp.asarray(SCORES),
            *(empty, empty == 1, jnp.int32(step), jnp.int32(0), numbers),
            repetition=False,
            no_repeat_ngram=0,
        )
        for row in got:
            assert set(np.flatnonzero(np.isneginf(row))) == banned


def test_draws_follow_the_scores():
    numbers, width = knobs(), 4000
    scores = jnp.broadcast_to(jnp.asarray(SCORES)[:, None], (2, width, VOCAB))
    drawn = jax.jit(draw)(scores, numbers, jnp.int32(0))
    for row in range(2):
        frequency = np.bincount(drawn[row], minlength=VOCAB) / width
        np.testing.assert_allclose(frequency, jax.nn.softmax(SCORES[row]), atol=0.03)
    assert (np.asarray(draw(scores, numbers, jnp.int32(1))) != drawn).any()
