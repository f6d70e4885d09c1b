"""Whether probabilities mean what they say."""

from typing import NamedTuple

import numpy as np

BINS = 15


class Reliability(NamedTuple):
    """Of each bin of probabilities: images, and how many of them are expected to be right and are; (bins,) each."""

    images: np.ndarray
    expected: np.ndarray
    right: np.ndarray


def reliability(probabilities: np.ndarray, right: np.ndarray) -> Reliability:
    """Images by the probability of their predicted label, in `BINS` intervals of equal width.

    Args:
        probabilities: of the predicted labels, (n,) float, 0 to 1.
        right: whether the prediction was right, (n,) bool.
    """
    places = np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)
    return Reliability(*(np.bincount(places, weights, BINS) for weights in (None, probabilities, right)))


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al., On calibration of modern neural networks, ICML 2017).

    How far, on average over the images, the probability of the predicted label is from the fraction of right
    predictions among the images with about that probability. Few images a bin make it larger: it is biased upwards.

    Args:
        probabilities: of the predicted labels, (n,) float, 0 to 1.
        right: whether the prediction was right, (n,) bool.
    """
    found = reliability(probabilities, right)
    return float(np.abs(found.right - found.expected).sum() / found.images.sum())
