"""BLEU of captions over a whole set, with Penn Treebank tokens (aclanthology.org/P02-1040)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluate.metrics.cider import Id, check_references
from flamingo_jax.evaluate.metrics.ptb import tokenize

ORDERS = 4
# As in the captioning challenge: no division by zero, and a set without a match scores almost zero.
_SMALL, _TINY = 1e-9, 1e-15


def bleu(candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> list[float]:
    """Returns BLEU-1 to BLEU-4 in [0, 1], the length compared with the closest reference of each
    image.

    Raises:
      UserError: no candidates, or an image without references.
    """
    check_references(candidates, references)
    matches, guesses, length, reference_length = [0] * ORDERS, [0] * ORDERS, 0, 0
    for i, text in candidates.items():
        words = tokenize(text).split()
        others = [tokenize(reference).split() for reference in references[i]]
        length += len(words)
        reference_length += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        for n in range(ORDERS):
            ours = _ngrams(words, n + 1)
            most = Counter[tuple[str, ...]]()
            for other in others:
                most |= _ngrams(other, n + 1)
            guesses[n] += max(0, len(words) - n)
            matches[n] += (ours & most).total()
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (matches[n] + _TINY) / (guesses[n] + _SMALL)
        scores.append(penalty * product ** (1 / (n + 1)))
    return scores


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
