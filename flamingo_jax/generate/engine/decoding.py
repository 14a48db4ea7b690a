"""The compiled parts of generation: the prompt, the first token, and the loop over the others.

Letters as in `layers.py`; W continuations of each row stand side by side, N new tokens.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.generate.engine import beam
from flamingo_jax.generate.engine.generation_config import StaticOptions
from flamingo_jax.generate.engine.prompt import (
    Prompt,
    PromptLayer,
    empty_cache,
    extend,
    prefill,
    unstacked_layers,
)
from flamingo_jax.generate.engine.sampling import (
    SamplingParams,
    apply_penalties,
    draw,
    filter_top_k_top_p,
)
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.models.vlm import Pictures, VisionLanguageModel

State = dict[str, Any]


def _choose(
    prompt: Prompt,
    state: State,
    logits_BWV: Float[Array, "B W V"],
    knobs: SamplingParams,
    method: StaticOptions,
) -> State:
    """The state with one more token per continuation."""
    batch, width, vocab_size = logits_BWV.shape
    step, tokens_BWN = state["step"], state["tokens"]
    logprobs_BWV = jax.nn.log_softmax(logits_BWV)
    length = prompt.tokens_BS.shape[1]
    in_prompt_BS = prompt.segments_BS == prompt.segments_BS[:, -1:]
    is_new_BWN = jnp.broadcast_to(jnp.arange(tokens_BWN.shape[2]) < step, tokens_BWN.shape)

    def history(old_BS: Array, new_BWN: Array) -> Array:
        old_BWS = jnp.broadcast_to(old_BS[:, None], (batch, width, length))
        return jnp.concatenate([old_BWS, new_BWN], axis=-1).reshape(batch * width, -1)

    scores_RV = apply_penalties(
        (logprobs_BWV if method.beams else logits_BWV).reshape(-1, vocab_size),
        history(prompt.tokens_BS, tokens_BWN),
        history(in_prompt_BS, is_new_BWN),
        step,
        length + step,
        knobs,
        repetition=method.repetition,
        no_repeat_ngram=method.no_repeat_ngram,
    )
    if method.beams:
        scores_BWV = scores_RV.reshape(logits_BWV.shape)
        state, parent_BW = beam.advance(
            state,
            scores_BWV,
            logprobs_BWV,
            knobs,
            num_stop=method.num_stop,
            early_stopping=method.early_stopping,
            count_prompt=method.count_prompt,
        )
        row_R = (jnp.arange(batch)[:, None] * width + parent_BW).reshape(-1)
        return {**state, "cache": jax.tree.map(lambda x: x[row_R], state["cache"])}

    if method.sample:
        scores_RV = filter_top_k_top_p(scores_RV, knobs)
        chosen_BW = draw(scores_RV.reshape(logits_BWV.shape), knobs, step)
    else:
        chosen_BW = jnp.argmax(scores_RV, axis=-1).reshape(batch, width)
    done_BW = state["done"]
    logprob_BW = jnp.take_along_axis(logprobs_BWV, chosen_BW[..., None], axis=-1)[..., 0]
    token_BW = jnp.where(done_BW, knobs.pad_token, chosen_BW)
    return {
        **state,
        "tokens": tokens_BWN.at[:, :, step].set(token_BW),
        "logprobs": state["logprobs"].at[:, :, step].set(jnp.where(done_BW, 0, logprob_BW)),
        "lengths": jnp.where(done_BW, state["lengths"], step + 1),
        "done": done_BW | knobs.is_stop_V[token_BW],
        "step": step + 1,
    }


@partial(jax.jit, static_argnums=0)
def run_prompt(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
    tokens_BS: Int[Array, "B S"],
    segments_BS: Int[Array, "B S"],
    num_images_B: Int[Array, "B"],
) -> Prompt:
    return prefill(graph.merge(params), images, tokens_BS, segments_BS, num_images_B)


@partial(jax.jit, static_argnums=(0, 5))
def first_token(
    graph: ModelGraph,
    params: Params,
    prompt: Prompt,
    knobs: SamplingParams,
    active_B: Bool[Array, "B"],
    method: StaticOptions,
) -> State:
    """The state after the first token, which needs nothing but the prompt's logits."""
    model: VisionLanguageModel = graph.merge(params)
    batch, vocab_size = prompt.logits_BV.shape
    rows = (batch, method.width)
    state = {
        "step": jnp.int32(0),
        "cache": empty_cache(model.decoder, batch * method.width, method.new_tokens),
    }
    if method.beams:
        state |= beam.start(batch, method.width, method.new_tokens) | {"done": ~active_B}
    else:
        state |= {
            "tokens": jnp.full((*rows, method.new_tokens), knobs.pad_token),
            "logprobs": jnp.zeros((*rows, method.new_tokens)),
            "lengths": jnp.zeros(rows, jnp.int32),
            "done": jnp.broadcast_to(~active_B[:, None], rows),
        }
    logits_BWV = jnp.broadcast_to(prompt.logits_BV[:, None], (*rows, vocab_size))
    return _choose(prompt, state, logits_BWV, knobs, method)


@partial(jax.jit, static_argnums=0)
def take_layers(graph: ModelGraph, params: Params, prompt: Prompt) -> list[PromptLayer]:
    """See `unstacked_layers`. A program of its own: many small arrays are memory used again, one
    program's scratch of this size is memory the system has to clear for every call."""
    return unstacked_layers(graph.merge(params), prompt)


@partial(jax.jit, static_argnums=(0, 6), donate_argnums=4)
def more_tokens(
    graph: ModelGraph,
    params: Params,
    layers: list[PromptLayer],
    prompt: Prompt,
    state: State,
    knobs: SamplingParams,
    method: StaticOptions,
    until: Int[Array, ""],
) -> State:
    """Token after token, until all rows have ended or there are `until` tokens."""
    model: VisionLanguageModel = graph.merge(params)

    def unfinished(state: State) -> Array:
        return (state["step"] < until) & ~state["done"].all()

    def one_more(state: State) -> State:
        last = state["step"] - 1
        logits_BWLV, cache = extend(
            *(model, prompt, state["tokens"], state["cache"]), start=last, length=1, layers=layers
        )
        state = {**state, "cache": cache}
        return _choose(prompt, state, logits_BWLV[:, :, 0], knobs, method)

    return jax.lax.while_loop(unfinished, one_more, state)


@partial(jax.jit, static_argnums=2)
def best_beams(state: State, knobs: SamplingParams, count_prompt: bool) -> State:
    return beam.finish(state, knobs, count_prompt=count_prompt)
