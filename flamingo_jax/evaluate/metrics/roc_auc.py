"""Area under the ROC curve."""

import warnings
from collections.abc import Sequence

import numpy as np


def roc_auc(labels: Sequence[bool | int], scores: Sequence[float]) -> float:
    """Returns the chance that a positive example scores higher than a negative one, in [0, 1].

    Equal scores count one half (mid-ranks). NaN, with a warning, where one class is missing: the
    area is not defined then. Papers print it times 100.

    Args:
      labels: true (1) for the positive class.
      scores: higher for examples that are more likely positive.

    Raises:
      ValueError: lengths that differ, labels other than 0 and 1, or a score that is NaN.
    """
    from scipy.stats import rankdata  # importing it takes a second

    positive, values = np.asarray(labels), np.asarray(scores, np.float64)
    if positive.shape != values.shape or not np.isin(positive, (0, 1)).all():
        raise ValueError(f"expected a label, 0 or 1, for each score; got {positive}, {values}")
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} scores are NaN")
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        warnings.warn(
            f"ROC AUC needs both classes; given {positives} positive and {negatives} negative",
            stacklevel=2,
        )
        return float("nan")
    ranks = rankdata(values)[positive.astype(bool)].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))
