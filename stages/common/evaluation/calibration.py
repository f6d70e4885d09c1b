"""Whether predictions of a probability p are correct in a fraction p of the cases."""

from typing import NamedTuple

import numpy as np

BINS = 15


class Reliability(NamedTuple):
    """For each bin of probabilities: images, expected number of correct ones, number of correct ones; (bins,) each."""

    images: np.ndarray
    expected: np.ndarray
    correct: np.ndarray


def reliability(probabilities: np.ndarray, correct: np.ndarray) -> Reliability:
    """Images by the probability of their predicted label, in `BINS` bins of equal width.

    Args:
        probabilities: of the predicted labels, (n,) float, 0 to 1.
        correct: whether the prediction is correct, (n,) bool.
    """
    places = np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)
    return Reliability(*(np.bincount(places, weights, BINS) for weights in (None, probabilities, correct)))


def calibration_error(probabilities: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error (Guo et al., On calibration of modern neural networks, ICML 2017).

    The mean distance, over the images, of the predicted label's probability from the fraction of correct predictions
    among the images of its bin. With few images per bin it is biased upwards.

    Args:
        probabilities: of the predicted labels, (n,) float, 0 to 1.
        correct: whether the prediction is correct, (n,) bool.
    """
    found = reliability(probabilities, correct)
    return float(np.abs(found.correct - found.expected).sum() / found.images.sum())
