"""The CNN that is trained from random weights: convolutions, and a classifier on them."""

from stages.common.networks.model_file import LOGITS
from stages.common.runtime.backend import keras


def encoder(size: int, pool: int, filters: list[int]) -> keras.Model:
    """Convolutions with random weights: uint8 images, (n, size, size, 3), to feature maps, (n, height, width, filters[-1]).

    It contains its own scaling, so that training and prediction can't differ in it.

    Args:
        size: side of the images in pixels.
        pool: each pool x pool pixels are averaged first.
        filters: the width of each block; a block halves the side.
    """
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)
    x = keras.layers.AveragePooling2D(pool, name="shrink")(x)
    for block, width in enumerate(filters, start=1):
        # Strides instead of pooling: a quarter of the work, which matters on a CPU.
        x = keras.layers.Conv2D(width, 3, 2, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{block}")(x)
        x = keras.layers.Activation("relu", name=f"relu{block}")(x)
    return keras.Model(images, x, name="encoder")


def classifier(convolutions: keras.Model, dropout: float, labels: int) -> keras.Model:
    """Put a classifier with random weights on an encoder: uint8 images to logits, (n, labels) float32.

    Args:
        convolutions: as `encoder` makes them.
        dropout: fraction of the last block's values dropped in training.
        labels: number of logits.
    """
    flat = keras.layers.Flatten(name="flatten")(convolutions.output)
    x = keras.layers.Dropout(dropout, name="dropout")(flat)
    logits = keras.layers.Dense(labels, dtype="float32", name=LOGITS)(x)
    return keras.Model(convolutions.input, logits, name="scratch")


def scratch(size: int, pool: int, filters: list[int], dropout: float, labels: int) -> keras.Model:
    """The whole CNN, with random weights: a `classifier` on an `encoder`."""
    return classifier(encoder(size, pool, filters), dropout, labels)
