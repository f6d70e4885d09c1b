"""Scores of predictions: F1, by scikit-learn, and calibration."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score


def f1(truth: Sequence[str] | np.ndarray, predictions: Sequence[str] | np.ndarray, average: str) -> float:
    """F1 over the labels that occur in `truth`.

    A label without an image to find is left out of the mean: it has no recall, and scikit-learn's default would count it
    as 0. Predicting it still costs, as the image's true label misses it. A label that is never predicted counts as 0.

    Args:
        truth: true labels, (n,).
        predictions: predicted labels, (n,).
        average: macro (mean over labels) or weighted (by the labels' images).
    """
    return float(f1_score(truth, predictions, labels=np.unique(truth), average=average, zero_division=0))


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., On calibration of modern neural networks, ICML 2017).

    How far, on average over the images, the probability of the predicted label is from the fraction of right
    predictions among the images with about that probability. Few images a bin make it larger: it is biased upwards.

    Args:
        probabilities: of the predicted labels, (n,) float, 0 to 1.
        right: whether the prediction was right, (n,) bool.
        bins: number of intervals of equal width.
    """
    places = np.clip(np.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(places, minlength=bins)
    gaps = np.bincount(places, right, bins) - np.bincount(places, probabilities, bins)
    return float(np.abs(gaps).sum() / images.sum())
