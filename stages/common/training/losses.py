"""Losses that treat the imbalance of the labels, all on one-hot targets and logits."""

from collections.abc import Callable

import numpy as np

from stages.common.runtime.backend import keras

Loss = Callable[[keras.KerasTensor, keras.KerasTensor], keras.KerasTensor]


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Weights inversely proportional to the labels' images, whose mean over the images is 1; 0 for a label without images.

    Args:
        counts: training images per label, (labels,) int.

    Returns:
        (labels,) float32.
    """
    present = counts > 0
    weights = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, weights, 0).astype(np.float32)


def make_loss(imbalance: str, counts: np.ndarray) -> Loss:
    """The loss of (n, labels) one-hot targets and (n, labels) logits; the functions return (n,) float32, a value per image.

    Args:
        imbalance: none | class_weight | focal (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, gamma 2, with
            a weight per label as alpha: a scalar alpha balances nothing between many labels) | logit_adjustment
            (Menon et al., Long-tail learning via logit adjustment, ICLR 2021, tau 1).
        counts: training images per label, (labels,) int.
    """
    weights = class_weights(counts)
    # A label without training images gets the prior of half an image, so that its logarithm exists.
    prior = np.log(np.maximum(counts, 0.5) / counts.sum()).astype(np.float32)

    def cross_entropy(targets: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.categorical_crossentropy(targets, logits, from_logits=True)

    def class_weight(targets: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.sum(targets * weights, axis=-1) * cross_entropy(targets, logits)

    def logit_adjustment(targets: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        return cross_entropy(targets, logits + prior)

    def focal(targets: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        return keras.losses.categorical_focal_crossentropy(targets, logits, alpha=weights, gamma=2.0, from_logits=True)

    return {
        "none": cross_entropy,
        "class_weight": class_weight,
        "focal": focal,
        "logit_adjustment": logit_adjustment,
    }[imbalance]
