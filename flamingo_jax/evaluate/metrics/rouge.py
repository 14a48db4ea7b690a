"""ROUGE-L of captions, with Penn Treebank tokens (https://aclanthology.org/W04-1013)."""

from collections.abc import Mapping, Sequence

import numpy as np

from flamingo_jax.evaluate.metrics.cider import Id, check_references
from flamingo_jax.evaluate.metrics.ptb import tokenize

BETA = 1.2  # recall counts a little more than precision


def rouge_l(
    candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
) -> tuple[float, dict[Id, float]]:
    """Returns the mean over the images and the score of each, in [0, 1].

    Precision and recall of the longest common subsequence are each the best over the references.

    Raises:
      UserError: no candidates, or an image without references.
    """
    check_references(candidates, references)
    scores = {
        i: _score(tokenize(text).split(" "), [tokenize(r).split(" ") for r in references[i]])
        for i, text in candidates.items()
    }
    return float(np.mean(list(scores.values()))), scores


def _score(words: list[str], references: list[list[str]]) -> float:
    common = [longest_common_subsequence(words, reference) for reference in references]
    precision = max(common) / len(words)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns how many items the longest subsequence of both has."""
    row = [0] * (len(b) + 1)
    for item in a:
        above = row
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if item == other else max(row[j], above[j + 1]))
    return row[-1]
