"""F1, by scikit-learn."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score


def f1(truth: Sequence[str] | np.ndarray, predictions: Sequence[str] | np.ndarray, average: str) -> float:
    """F1 over the labels that occur in `truth`.

    A label without images is omitted from the mean: it has no recall, and scikit-learn's default would count it as 0.
    Predicting it still costs, as the image's true label misses it. A label that is never predicted counts as 0.

    Args:
        truth: true labels, (n,).
        predictions: predicted labels, (n,).
        average: macro (mean over labels) or weighted (by the labels' images).
    """
    return float(f1_score(truth, predictions, labels=np.unique(truth), average=average, zero_division=0))
