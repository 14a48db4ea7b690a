"""From logits to the next token: penalties, bans and the filters of sampling.

The rules are those of transformers' logits processors, and they apply in its order: repetition
penalty, repeated n-grams, bad tokens, stop tokens before the minimal length; then temperature,
top-k, top-p, min-p. Padding is never part of the history. Numbers are traced, so that another
temperature compiles nothing. Letters as in `layers.py`; rows are B · W, M is the history's length.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The numbers of a generation."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    length_penalty: Float[Array, ""]
    min_new_tokens: Int[Array, ""]
    max_new_tokens: Int[Array, ""]
    prompt_width: Int[Array, ""]  # length of the prompts, padding included
    pad_token: Int[Array, ""]
    is_stop_V: Bool[Array, "V"]
    is_bad_V: Bool[Array, "V"]
    keys_B: Key[Array, "B"]  # one for each row: what is drawn for it depends on no other row


def apply_penalties(
    scores_RV: Float[Array, "R V"],
    history_RM: Int[Array, "R M"],
    valid_RM: Bool[Array, "R M"],
    step: Int[Array, ""],
    end: Int[Array, ""],
    knobs: SamplingParams,
    *,
    repetition: bool,
    no_repeat_ngram: int,
) -> Float[Array, "R V"]:
    """Scores (logits or log-probabilities) with −inf for what may not come next.

    `history_RM` are prompt and generated tokens, contiguous up to `end`; `valid_RM` says which of
    them count; `step` tokens are generated so far.
    """
    if repetition:
        rows_R1 = jnp.arange(len(history_RM))[:, None]
        seen_RV = jnp.zeros(scores_RV.shape, bool).at[rows_R1, history_RM].max(valid_RM)
        penalty = jnp.where(scores_RV < 0, knobs.repetition_penalty, 1 / knobs.repetition_penalty)
        scores_RV = jnp.where(seen_RV, scores_RV * penalty, scores_RV)
    banned_RV = knobs.is_bad_V | (knobs.is_stop_V & (step < knobs.min_new_tokens))
    if no_repeat_ngram:
        banned_RV |= repeated_ngrams(
            history_RM, valid_RM, end, size=no_repeat_ngram, vocab_size=scores_RV.shape[1]
        )
    return jnp.where(banned_RV, -jnp.inf, scores_RV)


def repeated_ngrams(
    history_RM: Int[Array, "R M"],
    valid_RM: Bool[Array, "R M"],
    end: Int[Array, ""],
    *,
    size: int,
    vocab_size: int,
) -> Bool[Array, "R V"]:
    """Tokens that would complete an n-gram of this size a second time."""
    rows, length = history_RM.shape
    starts = max(length - size + 1, 0)
    match_RM = jnp.ones((rows, starts), bool)
    for j in range(size - 1):
        at = end - (size - 1) + j
        last_R1 = jax.lax.dynamic_slice_in_dim(history_RM, at, 1, axis=1)
        last_valid_R1 = jax.lax.dynamic_slice_in_dim(valid_RM, at, 1, axis=1)
        same = (history_RM[:, j : j + starts] == last_R1) & last_valid_R1
        match_RM &= same & valid_RM[:, j : j + starts]
    last = slice(size - 1, size - 1 + starts)
    banned = jnp.zeros((rows, vocab_size), bool)
    return banned.at[jnp.arange(rows)[:, None], history_RM[:, last]].max(
        match_RM & valid_RM[:, last]
    )


def filter_top_k_top_p(
    scores_RV: Float[Array, "R V"], knobs: SamplingParams
) -> Float[Array, "R V"]:
    """Tempered scores, −inf outside the top k, the nucleus (arXiv 1904.09751) and min-p
    (arXiv 2407.01082). At least one token stays."""
    scores_RV = scores_RV / knobs.temperature
    sorted_RV = -jnp.sort(-scores_RV, axis=-1)
    rank_V = jnp.arange(scores_RV.shape[-1])
    kept_V = (rank_V < knobs.top_k) | (knobs.top_k == 0)
    probability_RV = jax.nn.softmax(jnp.where(kept_V, sorted_RV, -jnp.inf), axis=-1)
    before_RV = jnp.cumsum(probability_RV, axis=-1) - probability_RV
    kept_RV = kept_V & (before_RV < knobs.top_p)
    kept_RV &= probability_RV >= knobs.min_p * probability_RV[:, :1]
    kept_RV |= rank_V == 0
    lowest_R1 = jnp.min(jnp.where(kept_RV, sorted_RV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores_RV >= lowest_R1, scores_RV, -jnp.inf)


def draw(
    scores_BWV: Float[Array, "B W V"], knobs: SamplingParams, step: Int[Array, ""]
) -> Int[Array, "B W"]:
    """One token per continuation, from keys of its row, its number and the step."""

    def one(key: Array, scores_WV: Array) -> Array:
        keys_W = jax.vmap(lambda w: jax.random.fold_in(jax.random.fold_in(key, step), w))(
            jnp.arange(len(scores_WV))
        )
        return jax.vmap(jax.random.categorical)(keys_W, scores_WV)

    return jax.vmap(one)(knobs.keys_B, scores_BWV)
