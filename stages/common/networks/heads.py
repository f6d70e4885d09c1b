"""Heads: layers from a backbone's features to logits.

To add one: write it here, add its name to `Head` and `FEATURES` in runtime/parameters.py, and a case to `make_head`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from stages.common.networks.model_file import LOGITS, STANDARDISE
from stages.common.runtime.backend import Layers, keras


def make_head(kind: str, labels: int, l2: float, features: Iterable[np.ndarray]) -> Layers:
    """The head of this kind, from features to logits; called on several inputs, it shares its weights.

    Args:
        kind: softmax (pooled features, (n, channels)) or conv (feature maps, (n, height, width, channels)).
        labels: number of logits.
        l2: factor of |W|^2 in the loss, of the last layer's weights W.
        features: blocks, (any, channels), of the training images' pooled features. Head softmax
            standardises by them.
    """
    layers = {"softmax": lambda: _standardised(features), "conv": _convolutions}[kind]()
    regularizer = keras.regularizers.L2(l2) if l2 else None
    return _sequence(
        *layers,
        keras.layers.Dense(labels, kernel_regularizer=regularizer, dtype="float32", name=LOGITS),
    )


def _sequence(*layers: Layers) -> Layers:
    def apply(features: keras.KerasTensor) -> keras.KerasTensor:
        for layer in layers:
            features = layer(features)
        return features

    return apply


def _convolutions() -> list[Any]:
    """The first layers of head conv: a small convolutional network."""
    return [
        keras.layers.Conv2D(128, 1, use_bias=False, name="head_squeeze"),
        keras.layers.BatchNormalization(momentum=0.9, name="head_squeeze_norm"),
        keras.layers.Activation("relu", name="head_squeeze_relu"),
        keras.layers.Conv2D(128, 3, padding="same", use_bias=False, name="head_conv"),
        keras.layers.BatchNormalization(momentum=0.9, name="head_conv_norm"),
        keras.layers.Activation("relu", name="head_conv_relu"),
        keras.layers.GlobalAveragePooling2D(name="head_pool"),
    ]


def _standardised(features: Iterable[np.ndarray]) -> list[Any]:
    """The first layer of head softmax, which is linear in what it computes."""
    mean, variance = _moments(features)
    # A feature that hardly varies is noise: it must not be amplified.
    variance = np.maximum(variance, max(1e-2 * variance.mean(), 1e-12))
    return [keras.layers.Normalization(mean=mean, variance=variance, name=STANDARDISE)]


def _moments(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over the rows of all blocks, (channels,) float32 each."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        values = block.astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    mean = total / count
    return mean.astype(np.float32), (squares / count - mean**2).clip(0).astype(np.float32)
