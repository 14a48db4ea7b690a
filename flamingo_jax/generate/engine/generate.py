"""Continues prompts of images and text: greedy, sampled, or by beam search.

The prompt is run once, then one compiled loop makes token after token. Ragged batches are padded
to a bucket of shapes, so that later calls of the same bucket compile nothing. Letters as in
`layers.py`; R sequences returned for each row, N new tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flamingo_jax.generate.engine import decoding
from flamingo_jax.generate.engine.batching import PaddedPrompts, model_config, pad_prompts
from flamingo_jax.generate.engine.generation_config import (
    GenerationConfig,
    knobs_of,
    may_show_images,
    method_of,
)
from flamingo_jax.generate.engine.prompt import last_images_only
from flamingo_jax.models.params import ModelGraph, Params, on_mesh_of
from flamingo_jax.models.vlm import Pictures
from flamingo_jax.text.stop_strings import StopStrings

TOKENS_BETWEEN_LOOKS = 8  # with stop strings: decoding text is the host's work


@dataclass(frozen=True)
class Generated:
    """Continuations of each row, best first; padded after each end."""

    tokens_BRN: Int[np.ndarray, "B R N"]
    lengths_BR: Int[np.ndarray, "B R"]  # the token that stopped is counted
    # Log-probabilities under the model itself, before temperature, penalties and bans.
    logprobs_BRN: Float[np.ndarray, "B R N"]
    # Beam search: the length-penalised score; otherwise the sum of the log-probabilities.
    scores_BR: Float[np.ndarray, "B R"]

    def sequences(self, row: int) -> list[list[int]]:
        """The row's continuations without padding."""
        pairs = zip(self.tokens_BRN[row], self.lengths_BR[row], strict=True)
        return [tokens[:length].tolist() for tokens, length in pairs]


def generate(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None = None,
    *,
    config: GenerationConfig | None = None,
    num_images_B: Int[np.ndarray, "B"] | None = None,
    seeds: Sequence[int] | None = None,
    stop: StopStrings | None = None,
) -> Generated:
    """Continuations of each row's prompt.

    Args:
      graph: of a Flamingo.
      params: its parameters.
      images: (B, T, F, H, W, 3), uint8 RGB or normalised floats; a row's own ones come first.
      tokens_BL: int ids, padded on the left.
      segments_BL: 0 for padding; the continuation belongs to the last token's segment. None: no
        padding.
      config: how to continue; None: greedily, at most 32 tokens, to `<|endofchunk|>`.
      num_images_B: images of each row that are no padding; None: all T.
      seeds: of sampling, one for each row; a row gets the same tokens in whichever batch it is.
        None: 0, 1, 2, …
      stop: strings that end their row, looked for after every few tokens and cut off exactly at
        the token that completes one; `stop.text` gives the text before it.

    Raises:
      ValueError: a row that does not end with a token, that has more `<image>` tokens than images,
        or that grows longer than the model's learned positions; numbers that do not fit together;
        stop strings for beams.
    """
    inputs = images, tokens_BL, segments_BL
    *_, generated = _run(graph, params, *inputs, config, num_images_B, seeds, stop, None)
    return generated


def stream(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None = None,
    *,
    config: GenerationConfig | None = None,
    num_images_B: Int[np.ndarray, "B"] | None = None,
    seeds: Sequence[int] | None = None,
    stop: StopStrings | None = None,
    every: int = 1,
) -> Iterator[Generated]:
    """Yields what there is so far, again after every `every` tokens; otherwise as `generate`, whose
    compiled programs it shares.

    Raises:
      ValueError: also where beams are asked for, whose tokens may change until the end.
    """
    if config is not None and config.num_beams > 1:
        raise ValueError(f"num_beams is {config.num_beams}: beam search cannot be streamed")
    inputs = images, tokens_BL, segments_BL
    return _run(graph, params, *inputs, config, num_images_B, seeds, stop, every)


def _run(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None,
    config: GenerationConfig | None,
    num_images_B: Int[np.ndarray, "B"] | None,
    seeds: Sequence[int] | None,
    stop: StopStrings | None,
    every: int | None,
) -> Iterator[Generated]:
    config, model = config or GenerationConfig(), model_config(graph)
    if stop is not None and config.num_beams > 1:
        raise ValueError(
            f"num_beams is {config.num_beams}: beams end at stop tokens only; cut their text, or "
            "set num_beams=1"
        )
    padded = pad_prompts(
        model, images, tokens_BL, segments_BL, num_images_B, room=config.max_new_tokens
    )
    seeds = range(padded.num_rows) if seeds is None else seeds
    method, knobs = method_of(config, model), knobs_of(config, model, padded, seeds)
    with on_mesh_of(params):
        prompt = decoding.run_prompt(graph, params, *padded.arrays)
        state = decoding.first_token(graph, params, prompt, knobs, padded.active_B, method)
        if not may_show_images(config, model, padded):
            prompt = last_images_only(prompt)
        layers = decoding.take_layers(graph, params, prompt)
    until, limit = 1, config.max_new_tokens
    step = every or (limit if stop is None else TOKENS_BETWEEN_LOOKS)
    while True:
        if stop is not None:
            state = _end_at_strings(state, padded, stop)
        if until >= limit or (until > 1 and bool(state["done"].all())):
            break
        if every is not None:
            yield _collect(state, padded, config)
        until = min(until + step, limit)
        with on_mesh_of(params):  # not across a yield
            state = decoding.more_tokens(
                graph, params, layers, prompt, state, knobs, method, np.int32(until)
            )
    if method.beams:
        state = decoding.best_beams(state, knobs, method.count_prompt)
    yield _collect(state, padded, config)


def _end_at_strings(
    state: decoding.State, padded: PaddedPrompts, stop: StopStrings
) -> decoding.State:
    """Rows whose text has a stop string are done, at the token that completes it."""
    names = ("tokens", "lengths", "done")
    tokens_BRN, lengths_BR, done_BR = (np.array(state[name]) for name in names)
    for index in np.ndindex(padded.num_rows, lengths_BR.shape[1]):
        if length := stop.length(tokens_BRN[index][: lengths_BR[index]].tolist()):
            lengths_BR[index], done_BR[index] = length, True
    return {**state, "lengths": jnp.asarray(lengths_BR), "done": jnp.asarray(done_BR)}


def _collect(state: decoding.State, padded: PaddedPrompts, config: GenerationConfig) -> Generated:
    names = ("tokens", "lengths", "logprobs", "scores")
    rows, kept = padded.num_rows, config.num_return_sequences
    made = jax.device_get({name: state[name] for name in names if name in state})  # not the cache
    host = {name: x[:rows, :kept] for name, x in made.items()}
    lengths_BR, size = host["lengths"], config.max_new_tokens
    is_token_BRN = np.arange(size) < lengths_BR[..., None]
    logprobs_BRN = np.where(is_token_BRN, host["logprobs"][..., :size], 0)
    return Generated(
        np.where(is_token_BRN, host["tokens"][..., :size], config.pad_token),
        lengths_BR,
        logprobs_BRN,
        host.get("scores", logprobs_BRN.sum(axis=-1)),
    )
