"""CIDEr-D of captions, with Penn Treebank tokens (https://arxiv.org/abs/1411.5726)."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.metrics.ptb import tokenize

__all__ = ["cider", "cider_of_tokens", "tokenize"]

ORDERS, SIGMA = 4, 6.0

Ngram = tuple[str, ...]
Id = TypeVar("Id", bound=Hashable)


class _Vector(NamedTuple):
    weights: tuple[dict[Ngram, float], ...]  # one per order: term frequency times idf
    norms: tuple[float, ...]
    bigrams: int  # the length that the penalty compares


def cider(
    candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
) -> tuple[float, dict[Id, float]]:
    """Returns CIDEr-D of one caption for each image.

    Document frequencies come from the references of the scored images, so the score of a subset is
    not an estimate of the whole set's: see docs/metrics.md.

    Args:
      candidates: the caption of each image.
      references: the human captions of each image; images without a candidate do not count.

    Returns:
      The mean over the images and the score of each, in [0, 10]. Papers, and OpenFlamingo, print
      the mean times 100.

    Raises:
      UserError: no candidates, or an image without references.
    """
    check_references(candidates, references)
    return cider_of_tokens(
        {i: tokenize(text) for i, text in candidates.items()},
        {i: [tokenize(text) for text in references[i]] for i in candidates},
    )


def cider_of_tokens(
    candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
) -> tuple[float, dict[Id, float]]:
    """Returns `cider` of captions whose tokens are already parted by spaces."""
    counts = {i: [_ngrams(text) for text in references[i]] for i in candidates}
    frequency = Counter(ngram for texts in counts.values() for ngram in set().union(*texts))
    log_images = math.log(len(candidates))
    idf = {ngram: log_images - math.log(n) for ngram, n in frequency.items()}
    scores = {}
    for i, text in candidates.items():
        candidate = _vector(_ngrams(text), idf, log_images)
        similarities = [_similarity(candidate, _vector(c, idf, log_images)) for c in counts[i]]
        scores[i] = 10 * float(np.mean(similarities))
    return float(np.mean(list(scores.values()))), scores


def check_references(candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    """Raises UserError where there is nothing to score, or a candidate without references."""
    if not candidates:
        raise UserError("no captions were given to score; expected at least one")
    missing = [i for i in candidates if not references.get(i)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(candidates)} captions have no references, the first is "
            f"{missing[0]!r}; give the annotations of every scored image"
        )


def _ngrams(line: str) -> Counter[Ngram]:
    words = line.split()
    return Counter(
        tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1)
    )


def _vector(counts: Counter[Ngram], idf: Mapping[Ngram, float], unseen: float) -> _Vector:
    weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(ORDERS))
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * idf.get(ngram, unseen)
    norms = tuple(math.sqrt(sum(w * w for w in order.values())) for order in weights)
    return _Vector(weights, norms, sum(n for ngram, n in counts.items() if len(ngram) == 2))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Returns the clipped cosine, mean over the orders, with the penalty for a different length."""
    cosines = 0.0
    for ours, theirs, *norms in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if all(norms):
            dot = sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs)
            cosines += dot / (norms[0] * norms[1])
    delta = candidate.bigrams - reference.bigrams
    return cosines / ORDERS * math.exp(-(delta**2) / (2 * SIGMA**2))
