"""The CNN that is trained from random weights."""

from stages.common.runtime.backend import keras


def scratch(size: int, pool: int, filters: list[int], dropout: float, labels: int) -> keras.Model:
    """A CNN with random weights: uint8 images, (n, size, size, 3), to logits, (n, labels) float32.

    It contains its own scaling, so that training and prediction can't differ in it.

    Args:
        size: side of the images in pixels.
        pool: each pool x pool pixels are averaged first.
        filters: the width of each block; a block halves the side.
        dropout: fraction of the last block's values dropped in training.
        labels: number of logits.
    """
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)
    x = keras.layers.AveragePooling2D(pool, name="shrink")(x)
    for block, width in enumerate(filters, start=1):
        # Strides instead of pooling: a quarter of the work, which matters on a CPU.
        x = keras.layers.Conv2D(width, 3, 2, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{block}")(x)
        x = keras.layers.Activation("relu", name=f"relu{block}")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(keras.layers.Flatten(name="flatten")(x))
    return keras.Model(images, keras.layers.Dense(labels, dtype="float32", name="logits")(x), name="scratch")
