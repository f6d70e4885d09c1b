"""VICReg: two views of an image get similar embeddings, while each dimension varies over a batch and no two are correlated.

Bardes, Ponce and LeCun, VICReg: Variance-invariance-covariance regularization for self-supervised learning, ICLR 2022.
"""

from typing import Any

from stages.common.runtime.backend import keras

ops = keras.ops

# The weights of the paper.
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
EPSILON = 1e-4


class VICReg(keras.losses.Loss):  # type: ignore[misc]
    """The loss of a batch of embeddings, (2 n, dimensions): n views, then a second view of each of the same images."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss, a scalar. `y_true` is not used."""
        del y_true
        return (
            INVARIANCE * invariance(None, y_pred)
            + VARIANCE * sum(ops.mean(ops.relu(1 - deviations(view))) for view in ops.split(y_pred, 2)) / 2
            + COVARIANCE * covariance(None, y_pred)
        )


def deviations(view: Any) -> Any:
    """The standard deviation of each dimension over a batch, (dimensions,)."""
    return ops.sqrt(ops.var(view, axis=0) * view.shape[0] / (view.shape[0] - 1) + EPSILON)


def invariance(y_true: Any, y_pred: Any) -> Any:
    """The mean squared distance of two views of an image, for each dimension."""
    first, second = ops.split(y_pred, 2)
    return ops.mean(ops.square(first - second))


def spread(y_true: Any, y_pred: Any) -> Any:
    """The mean standard deviation of the dimensions: the loss pulls it to 1; 0.01 if all embeddings are equal."""
    return ops.mean(deviations(y_pred))


def covariance(y_true: Any, y_pred: Any) -> Any:
    """The sum over both views of the squared covariances of different dimensions, divided by the number of dimensions."""
    total = 0.0
    for view in ops.split(y_pred, 2):
        centred = view - ops.mean(view, axis=0)
        matrix = ops.matmul(ops.transpose(centred), centred) / (view.shape[0] - 1)
        total += (ops.sum(ops.square(matrix)) - ops.sum(ops.square(ops.diagonal(matrix)))) / view.shape[1]
    return total
