"""Beam search, as transformers does it, for all rows of a batch at once.

Each row has W running and W finished sequences. The best (1 + number of stop tokens) · W
continuations of the running ones are looked at: those that stop and are among the best W are
offered to the finished ones, the best W that go on run on. Letters as in `layers.py`; W beams,
C candidates, N new tokens.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.generate.engine.sampling import SamplingParams

EarlyStopping = bool | Literal["never"]
State = dict[str, Any]
MOST_ONE_BY_ONE = 16  # candidates; more are sorted
LOWEST = -1.0e9  # a score below all; −inf would turn into NaN when scores are added


def start(batch: int, width: int, length: int) -> State:
    """Empty beams. All but one score low, because at the first step all are alike."""
    rows = (batch, width)

    def sequences() -> State:
        return {
            "tokens": jnp.zeros((*rows, length), jnp.int32),
            "logprobs": jnp.zeros((*rows, length)),
        }

    return {
        **sequences(),
        "scores": jnp.full(rows, LOWEST).at[:, 0].set(0.0),
        "finished": {
            **sequences(),
            "scores": jnp.full(rows, -jnp.inf),
            "lengths": jnp.zeros(rows, jnp.int32),
        },
    }


def advance(
    state: State,
    scores_BWV: Float[Array, "B W V"],
    logprobs_BWV: Float[Array, "B W V"],
    knobs: SamplingParams,
    *,
    num_stop: int,
    early_stopping: EarlyStopping,
    count_prompt: bool,
) -> tuple[State, Int[Array, "B W"]]:
    """One token more for every beam; also the beams from which the new ones come.

    `scores_BWV` are log-probabilities after bans and penalties, −inf where not allowed;
    `logprobs_BWV` the model's own, which are only recorded. `count_prompt`: scores as transformers
    ≤ 4.35 had them, where the length that the penalty sees counts the prompt and its padding, and
    not the token that stops. A row is done as its `BeamSearchScorer` has it: no candidate, stopping
    or not, would score better than the worst finished sequence if it ended at the horizon.
    """
    batch, width, vocab_size = scores_BWV.shape
    step, done_B = state["step"], state["done"]
    total = (scores_BWV + state["scores"][..., None]).reshape(batch, -1)
    scores_BC, chosen_BC = _best(total, min((1 + num_stop) * width, total.shape[1]))
    parent_BC, token_BC = chosen_BC // vocab_size, chosen_BC % vocab_size
    stops_BC = knobs.is_stop_V[token_BC]
    candidates = {
        name: take(state[name], parent_BC).at[:, :, step].set(new)
        for name, new in (
            ("tokens", token_BC),
            ("logprobs", take(logprobs_BWV.reshape(batch, -1), chosen_BC)),
        )
    }
    running_scores_BW, best_BW = jax.lax.top_k(
        jnp.where(stops_BC, -jnp.inf, jnp.maximum(scores_BC, LOWEST)), width
    )

    offered_BC = stops_BC & (jnp.arange(stops_BC.shape[1]) < width) & ~done_B[:, None]
    ended_length = step + (knobs.prompt_width if count_prompt else 1)
    ended = _normalised(scores_BC, ended_length, knobs)
    lengths_BC = jnp.full(stops_BC.shape, step + 1)
    finished = _merge(
        state["finished"],
        {**candidates, "scores": jnp.where(offered_BC, ended, -jnp.inf), "lengths": lengths_BC},
    )
    horizon = ended_length
    if early_stopping == "never":
        limit = knobs.max_new_tokens + (knobs.prompt_width if count_prompt else 0)
        horizon = jnp.where(knobs.length_penalty > 0, limit, ended_length)
    hopeless_B = finished["scores"][:, -1] >= _normalised(scores_BC[:, 0], horizon, knobs)
    full_B = jnp.isfinite(finished["scores"]).all(axis=1)
    state = {
        **state,
        **{name: take(candidates[name], best_BW) for name in candidates},
        "scores": running_scores_BW,
        "finished": finished,
        "step": step + 1,
        "done": done_B | (full_B & (hopeless_B | (early_stopping is True))),
    }
    return state, take(parent_BC, best_BW)


def finish(state: State, knobs: SamplingParams, *, count_prompt: bool) -> State:
    """The best sequences of each row, best first. Where nothing said that better ones cannot come,
    the running ones count too, as if they had ended here."""
    length = state["step"] + (knobs.prompt_width if count_prompt else 0)
    scores_BW = _normalised(state["scores"], length, knobs)
    running = {
        **{name: state[name] for name in ("tokens", "logprobs")},
        "scores": jnp.where(state["done"][:, None], -jnp.inf, scores_BW),
        "lengths": jnp.full(scores_BW.shape, state["step"]),
    }
    return _merge(state["finished"], running)


def _best(scores_BX: Array, count: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` for a few of very many, which XLA would sort, all of them, on a CPU."""
    if count > MOST_ONE_BY_ONE:
        return jax.lax.top_k(scores_BX, count)
    rows_B, found = jnp.arange(len(scores_BX)), []
    # What is taken sinks below all, also below what is not allowed.
    left_BX = jnp.maximum(scores_BX, jnp.finfo(scores_BX.dtype).min)
    for _ in range(count):
        found.append(jnp.argmax(left_BX, axis=1))
        left_BX = left_BX.at[rows_B, found[-1]].set(-jnp.inf)
    index_BC = jnp.stack(found, axis=1)
    return take(scores_BX, index_BC), index_BC


def take(x: Array, index_BW: Int[Array, "B W"]) -> Array:
    """x[b, index[b, w]] for every row b."""
    return jax.vmap(lambda row, index: row[index])(x, index_BW)


def _normalised(scores: Array, length: Array, knobs: SamplingParams) -> Array:
    return scores / length.astype(jnp.float32) ** knobs.length_penalty


def _merge(finished: State, offered: State) -> State:
    """The best W of both, best first."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), finished, offered)
    width = finished["scores"].shape[1]
    _, best_BW = jax.lax.top_k(both["scores"], width)
    return {name: take(x, best_BW) for name, x in both.items()}
