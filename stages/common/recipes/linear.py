"""The optimum of a linear head, by scikit-learn in float64: the same on every machine up to rounding, unlike epochs."""

import warnings
from collections.abc import Iterable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from stages.common.networks.model_file import LOGITS, STANDARDISE
from stages.common.runtime.backend import keras

# So near to the optimum, the rounding of another processor moves a probability by about 1e-6.
TOLERANCE = 1e-8
MAX_ITERATIONS = 1_000
ABSENT = -1e3  # logit of a label without training images


def fit_head(model: keras.Model, blocks: Iterable[np.ndarray], labels: np.ndarray, imbalance: str, l2: float) -> bool:
    """Give the linear head of a model the weights of its optimum, by `solve`.

    Args:
        model: that ends in a head softmax, as `make_head` makes it.
        blocks: features of the training images, (any, channels) float32 each.
        labels: numbers of the labels, (n,) int.
        imbalance: none or class_weight.
        l2: more than 0.

    Returns:
        Whether the optimum was reached.
    """
    standardise = model.get_layer(STANDARDISE)
    mean, deviation = (keras.ops.convert_to_numpy(value) for value in (standardise.mean, standardise.variance**0.5))
    features, first = np.empty((len(labels), mean.shape[-1])), 0
    for block in blocks:
        features[first : first + len(block)] = (block - mean) / deviation
        first += len(block)
    *weights, iterations = solve(features, labels, model.output.shape[-1], imbalance, l2)
    model.get_layer(LOGITS).set_weights(weights)
    return iterations < MAX_ITERATIONS


def solve(
    features: np.ndarray, labels: np.ndarray, classes: int, imbalance: str, l2: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Multinomial logistic regression: minimise the summed loss of the images + l2 / 2 |W|^2.

    Args:
        features: standardised, (n, channels) float64.
        labels: numbers of the labels, (n,) int.
        classes: number of labels.
        imbalance: none or class_weight, as `losses.make_loss` defines them.
        l2: more than 0.

    Returns:
        W, (channels, classes) float64, the biases, (classes,) float64, and the number of iterations: `MAX_ITERATIONS` if
        the optimum was not reached.
    """
    present = np.unique(labels)
    # For two labels scikit-learn learns one column w, which here is halved into two: |W|^2 is half of |w|^2.
    model = LogisticRegression(
        C=(2 if len(present) == 2 else 1) / l2,
        class_weight="balanced" if imbalance == "class_weight" else None,
        solver="newton-cg",  # reaches this tolerance in a quarter of the time of lbfgs
        tol=TOLERANCE,
        max_iter=MAX_ITERATIONS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller says it
        model.fit(features, labels)
    columns, biases = model.coef_, model.intercept_
    if len(present) == 2:
        columns, biases = np.concatenate([-columns, columns]) / 2, np.concatenate([-biases, biases]) / 2
    weights, bias = np.zeros((features.shape[1], classes)), np.full(classes, ABSENT)
    weights[:, present], bias[present] = columns.T, biases
    return weights, bias, int(model.n_iter_[0])
