"""Beam search against the plain rules, one row and one hypothesis at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.generate.engine import beam
from tests.generate.engine.test_sampling import knobs

VOCAB, WIDTH, NEW, PROMPT = 6, 3, 5, 4


def log_probability_table(rng, rows):
    """A language model whose next token depends on the row and the last two tokens alone."""
    logits = 1.5 * rng.normal(size=(rows, VOCAB + 1, VOCAB + 1, VOCAB))
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))


def plain_search(table, stop, *, penalty, early_stopping, count_prompt):
    """`BeamSearchScorer` of transformers 4.36 (or of 4.35), read rule by rule."""
    running, finished = [((), 0.0)], []
    extra = PROMPT if count_prompt else 0

    def add(score, length, tokens):
        finished.append((score / length**penalty, tokens))
        finished.sort(key=lambda pair: -pair[0])
        del finished[WIDTH:]

    for step in range(NEW):
        candidates = []
        for tokens, score in running:
            context = (VOCAB, VOCAB, *tokens)[-2:]
            candidates += [((*tokens, t), score + table[context][t]) for t in range(VOCAB)]
        candidates.sort(key=lambda pair: -pair[1])
        candidates = candidates[: (1 + len(stop)) * WIDTH]
        length = step + extra if count_prompt else step + 1
        running = []
        for rank, (tokens, score) in enumerate(candidates):
            if tokens[-1] not in stop:
                running.append((tokens, score))
            elif rank < WIDTH:
                add(score, length, tokens)
            if len(running) == WIDTH:
                break
        if len(finished) == WIDTH:
            horizon = length
            if early_stopping == "never" and penalty > 0:
                horizon = NEW + extra
            best = candidates[0][1] / horizon**penalty
            if early_stopping is True or finished[-1][0] >= best:
                return finished
    for tokens, score in running:
        add(score, NEW + extra, tokens)
    return finished


def search(tables, stop, *, penalty, early_stopping, count_prompt):
    rows = len(tables)
    is_stop = np.isin(np.arange(VOCAB), stop)
    numbers = knobs(
        length_penalty=float(penalty),
        is_stop_V=is_stop,
        max_new_tokens=NEW,
        prompt_width=PROMPT,
    )

    def one_more(step, state):
        before = jnp.concatenate([jnp.full((rows, WIDTH, 2), VOCAB), state["tokens"]], axis=-1)
        last = jax.lax.dynamic_slice_in_dim(before, step, 2, axis=2)
        logp = jax.vmap(lambda table, pair: table[pair[:, 0], pair[:, 1]])(tables, last)
        state, _ = beam.advance(
            state,
            logp,
            logp,
            numbers,
            num_stop=len(stop),
            early_stopping=early_stopping,
            count_prompt=count_prompt,
        )
        return state

    state = beam.start(rows, WIDTH, NEW) | {"step": jnp.int32(0), "done": jnp.zeros(rows, bool)}
    state = jax.lax.fori_loop(0, NEW, one_more, state)
    return beam.finish(state, numbers, count_prompt=count_prompt)


@pytest.mark.parametrize("stop", [(2,), (1, 4)])
@pytest.mark.parametrize(
    ("early_stopping", "count_prompt"),
    list(itertools.product([False, True, "never"], [False, True])),
)
def test_beams_are_those_of_the_plain_rules(rng, early_stopping, count_prompt, stop):
    tables = log_probability_table(rng, 16)
    for penalty in (1, 0, -2) if early_stopping is False else (1,):
        settings = {"early_stopping": early_stopping, "count_prompt": count_prompt}
        settings["penalty"] = penalty
        found = jax.jit(lambda s=settings: search(jnp.asarray(tables), stop, **s))()
        for row, table in enumerate(tables):
            expected = plain_search(table, stop, **settings)
            np.testing.assert_allclose(
                found["scores"][row], [score for score, _ in expected], rtol=1e-5
            )
            for i, (_, tokens) in enumerate(expected):
                length = int(found["lengths"][row, i])
                assert tuple(found["tokens"][row, i, :length].tolist()) == tokens


def test_a_wide_beam_finds_the_best_of_all_texts(rng):
    """With a beam per text nothing can be missed. Nothing stops: all are of one length."""
    table = log_probability_table(rng, 1)
    best = max(
        itertools.product(range(VOCAB), repeat=2),
        key=lambda pair: table[0, VOCAB, VOCAB, pair[0]] + table[0, VOCAB, pair[0], pair[1]],
    )
    width, numbers = VOCAB, knobs()
    state = beam.start(1, width, 2) | {"step": jnp.int32(0), "done": jnp.zeros(1, bool)}
    for step in range(2):
        last = state["tokens"][..., 0] if step else jnp.full((1, width), VOCAB)
        logp = jnp.asarray(table[0, VOCAB])[last]
        state, _ = beam.advance(
            *(state, logp, logp, numbers), num_stop=0, early_stopping=False, count_prompt=False
        )
    found = beam.finish(state, numbers, count_prompt=False)
    assert tuple(found["tokens"][0, 0].tolist()) == best
