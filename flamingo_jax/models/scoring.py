"""How likely given texts are: continuations of a prompt, and whole documents.

Letters as in `layers.py`; C continuations of up to M tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flamingo_jax.models.batching import bucket, model_config, pad_prompts
from flamingo_jax.models.decoding import run_prompt
from flamingo_jax.models.flamingo import Images, check_image_count
from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.models.prompt import Prompt, extend


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the same continuations of each row."""

    logprobs_BCM: Float[np.ndarray, "B C M"]  # per token, 0 after the end
    lengths_C: Int[np.ndarray, "C"]

    @property
    def sums_BC(self) -> Float[np.ndarray, "B C"]:  # noqa: N802
        return self.logprobs_BCM.sum(axis=-1)

    @property
    def means_BC(self) -> Float[np.ndarray, "B C"]:  # noqa: N802
        return self.sums_BC / self.lengths_C


@partial(jax.jit, static_argnums=0)
def _score(
    graph: ModelGraph, params: Params, prompt: Prompt, tokens_CM: Int[Array, "C M"]
) -> Float[Array, "B C M"]:
    batch = len(prompt.logits_BV)
    tokens_BCM = jnp.broadcast_to(tokens_CM, (batch, *tokens_CM.shape))
    logits_BCMV, _ = extend(graph.merge(params), prompt, tokens_BCM)
    first_BCxV = jnp.broadcast_to(
        prompt.logits_BV[:, None, None], (*tokens_BCM.shape[:2], 1, logits_BCMV.shape[-1])
    )
    before_BCMV = jnp.concatenate([first_BCxV, logits_BCMV[:, :, :-1]], axis=2)
    return _picked(before_BCMV, tokens_BCM)


def _picked(logits: Float[Array, "... V"], tokens: Int[Array, "..."]) -> Float[Array, "..."]:
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def score_continuations(
    graph: ModelGraph,
    params: Params,
    images: Images,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None,
    continuations: Sequence[Sequence[int]],
    *,
    num_images_B: Int[np.ndarray, "B"] | None = None,
    at_once: int = 128,
) -> Scores:
    """Log-likelihood of each continuation after each prompt; prompts as for `generate`.

    The images and the prompt are run once. All continuations of a row attend to the one copy of
    its keys and values, `at_once` of them side by side (it bounds the memory).

    Raises:
      ValueError: no continuation or an empty one, a token outside the vocabulary; see `generate`.
    """
    config = model_config(graph)
    lengths_C = np.array([len(tokens) for tokens in continuations])
    if not lengths_C.size or not lengths_C.all():
        raise ValueError("give at least one continuation, and none without tokens")
    longest = int(lengths_C.max())
    tokens_CM = np.zeros((len(continuations), bucket(longest)), np.int32)
    for row, tokens in zip(tokens_CM, continuations, strict=True):
        row[: len(tokens)] = tokens
    vocab_size = config.decoder.total_vocab_size
    if tokens_CM.min() < 0 or tokens_CM.max() >= vocab_size:
        raise ValueError(f"a continuation has a token outside the vocabulary of {vocab_size}")

    padded = pad_prompts(config, images, tokens_BL, segments_BL, num_images_B, room=longest)
    prompt = run_prompt(graph, params, *padded.arrays)
    side_by_side = bucket(min(at_once, len(continuations)))
    chunks = []
    for start in range(0, len(tokens_CM), side_by_side):
        chunk_CM = tokens_CM[start : start + side_by_side]
        missing = side_by_side - len(chunk_CM)
        chunk_CM = np.pad(chunk_CM, ((0, missing), (0, 0)))
        chunks.append(np.asarray(_score(graph, params, prompt, chunk_CM)))
    logprobs_BCM = np.concatenate(chunks, axis=1)[: padded.num_rows, : len(continuations), :longest]
    is_token_CM = np.arange(longest) < lengths_C[:, None]
    return Scores(np.where(is_token_CM, logprobs_BCM, 0), lengths_C)


@partial(jax.jit, static_argnums=0)
def _document(
    graph: ModelGraph,
    params: Params,
    images: Images,
    tokens_BL: Int[Array, "B L"],
    segments_BL: Int[Array, "B L"],
) -> Float[Array, "B L"]:
    logits_BLV = graph.merge(params)(images, tokens_BL, segments_BL)
    return _picked(logits_BLV[:, :-1], tokens_BL[:, 1:])


def perplexity(
    graph: ModelGraph,
    params: Params,
    images: Images,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None = None,
) -> Float[np.ndarray, "B"]:
    """exp(mean negative log-likelihood) of each row's text, padded on whichever side.

    The first token of a segment is not predicted; `<image>` marks and padding do not count.

    Raises:
      ValueError: more `<image>` tokens than images in a row, or a row with nothing to predict.
    """
    config = model_config(graph)
    tokens = np.asarray(tokens_BL, np.int32)
    segments = np.ones_like(tokens) if segments_BL is None else np.asarray(segments_BL, np.int32)
    if not config.cross_attention.uniform_beyond_images:
        check_image_count(np.where(segments != 0, tokens, -1), config.image_token, images.shape[1])
    counted = (segments[:, 1:] != 0) & (segments[:, 1:] == segments[:, :-1])
    counted &= tokens[:, 1:] != config.image_token
    for row in np.flatnonzero(~counted.any(axis=1)):
        raise ValueError(f"row {row} has no token to predict: give it at least two of text")
    logprobs = np.asarray(_document(graph, params, images, tokens, segments))
    return np.exp(-(logprobs * counted).sum(axis=1) / counted.sum(axis=1))
