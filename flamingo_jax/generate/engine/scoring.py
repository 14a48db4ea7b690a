"""Scores given texts, by how likely they are: continuations of a prompt, and whole documents.

Letters as in `layers.py`; C continuations of up to M tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flamingo_jax.generate.engine.batching import bucket, model_config, pad_prompts
from flamingo_jax.generate.engine.decoding import run_prompt
from flamingo_jax.generate.engine.prompt import Prompt, extend_packed
from flamingo_jax.models.params import ModelGraph, Params, on_mesh_of
from flamingo_jax.models.vlm import Pictures
from flamingo_jax.text.documents import check_image_count


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
    graph: ModelGraph, params: Params, prompt: Prompt, first_C: Int[Array, "C"], packed: Array
) -> tuple[Float[Array, "B C"], Float[Array, "B P"]]:
    """Log-probabilities of first tokens, and of those that follow the `packed` ones: rows of
    tokens, of their successors, of places and of owners (see `extend_packed`), [4, P]."""
    first_BC = jax.nn.log_softmax(prompt.logits_BV)[:, first_C]
    tokens_P, next_P, places_P, owners_P = packed
    if not len(tokens_P):
        return first_BC, jnp.zeros((len(first_BC), 0))
    logits_BPV = extend_packed(graph.merge(params), prompt, tokens_P, places_P, owners_P)
    return first_BC, _picked(logits_BPV, jnp.broadcast_to(next_P, logits_BPV.shape[:2]))


def _picked(logits: Float[Array, "... V"], tokens: Int[Array, "..."]) -> Float[Array, "..."]:
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def score_continuations(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
    tokens_BL: Int[np.ndarray, "B L"],
    segments_BL: Int[np.ndarray, "B L"] | None,
    continuations: Sequence[Sequence[int]],
    *,
    num_images_B: Int[np.ndarray, "B"] | None = None,
    at_once: int = 128,
) -> Scores:
    """Log-likelihood of each continuation after each prompt; prompts as for `generate`.

    The images and the prompt are run once. The continuations follow it behind one another, each
    seeing the prompt and itself, `at_once` of them in one pass (it bounds the memory).

    Raises:
      ValueError: no continuation or an empty one, a token outside the vocabulary; see `generate`.
    """
    config = model_config(graph)
    lengths_C = np.array([len(tokens) for tokens in continuations])
    if not lengths_C.size or not lengths_C.all():
        raise ValueError("give at least one continuation, and none without tokens")
    tokens_all, vocab_size = np.concatenate(continuations), config.decoder.total_vocab_size
    if tokens_all.min() < 0 or tokens_all.max() >= vocab_size:
        raise ValueError(f"a continuation has a token outside the vocabulary of {vocab_size}")

    longest = int(lengths_C.max())
    padded = pad_prompts(config, images, tokens_BL, segments_BL, num_images_B, room=longest)
    with on_mesh_of(params):
        prompt = run_prompt(graph, params, *padded.arrays)
    side_by_side = bucket(min(at_once, len(continuations)))
    starts = range(0, len(continuations), side_by_side)
    packs = [_pack(continuations[start : start + side_by_side]) for start in starts]
    size = bucket(max(pack.shape[1] for pack in packs))
    logprobs_BCM = np.zeros((padded.num_rows, len(continuations), longest), np.float32)
    for start, pack in zip(starts, packs, strict=True):
        chunk = continuations[start : start + side_by_side]
        firsts = np.zeros(side_by_side, np.int32)
        firsts[: len(chunk)] = [tokens[0] for tokens in chunk]
        num_packed = pack.shape[1]
        filled = np.pad(pack, ((0, 0), (0, size - num_packed)), constant_values=-1)
        filled[:3, num_packed:] = 0
        with on_mesh_of(params):
            first_BC, later_BP = jax.device_get(_score(graph, params, prompt, firsts, filled))
        _, _, places_P, owners_P = pack
        rows = slice(padded.num_rows)
        logprobs_BCM[:, start : start + len(chunk), 0] = first_BC[rows, : len(chunk)]
        logprobs_BCM[:, start + owners_P, places_P + 1] = later_BP[rows, :num_packed]
    return Scores(logprobs_BCM, lengths_C)


def _pack(continuations: Sequence[Sequence[int]]) -> Int[np.ndarray, "4 P"]:
    """Tokens that another one follows, that one, and where they stand (see `_score`)."""
    columns = [
        (token, tokens[place + 1], place, owner)
        for owner, tokens in enumerate(continuations)
        for place, token in enumerate(tokens[:-1])
    ]
    return np.array(columns, np.int32).reshape(-1, 4).T


@partial(jax.jit, static_argnums=0)
def _document(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
    tokens_BL: Int[Array, "B L"],
    segments_BL: Int[Array, "B L"],
) -> Float[Array, "B L"]:
    logits_BLV = graph.merge(params)(images, tokens_BL, segments_BL)
    return _picked(logits_BLV[:, :-1], tokens_BL[:, 1:])


def perplexity(
    graph: ModelGraph,
    params: Params,
    images: Pictures,
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
    if not config.fusion.uniform_beyond_images:
        check_image_count(np.where(segments != 0, tokens, -1), config.image_token, images.shape[1])
    counted = (segments[:, 1:] != 0) & (segments[:, 1:] == segments[:, :-1])
    counted &= tokens[:, 1:] != config.image_token
    for row in np.flatnonzero(~counted.any(axis=1)):
        raise ValueError(f"row {row} has no token to predict: give it at least two of text")
    with on_mesh_of(params):
        logprobs = np.asarray(_document(graph, params, images, tokens, segments))
    return np.exp(-(logprobs * counted).sum(axis=1) / counted.sum(axis=1))
