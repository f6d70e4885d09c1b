"""Pretrained backbones, from uint8 images to feature maps.

A backbone contains its own scaling, so that training and prediction can't differ in it. It is flat, functional and made of
Keras layers only: a file of it loads with `safe_mode=True`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.networks.batch_norm import calibrate_batch_norm
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError, short


class Family(NamedTuple):
    """How to build a backbone, and its preprocessing."""

    build: Callable[..., keras.Model]
    scale: Callable[[keras.KerasTensor], keras.KerasTensor]
    options: dict[str, Any]


def _caffe(images: keras.KerasTensor) -> keras.KerasTensor:
    """VGG's preprocessing: BGR, ImageNet's mean subtracted, values up to 255."""
    bgr = keras.ops.flip(images, axis=-1)
    return keras.layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68], name="scale")(bgr)


def _minus_one_to_one(images: keras.KerasTensor) -> keras.KerasTensor:
    """Xception's and MobileNet's preprocessing: -1 to 1."""
    return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)


BACKBONES = {
    "vgg16": Family(keras.applications.VGG16, _caffe, {}),
    "xception": Family(keras.applications.Xception, _minus_one_to_one, {}),
    "mobilenetv2": Family(keras.applications.MobileNetV2, _minus_one_to_one, {"alpha": 0.35}),
}

# Not the parameter `seed`: a new seed must not run the backbone over all images again.
RANDOM_WEIGHTS_SEED = 0


def backbone(
    name: str, size: int, input_size: int, weights: str, examples: np.ndarray, precision: str = "float32"
) -> keras.Model:
    """A frozen backbone without its top: uint8 images to float feature maps.

    Args:
        name: one of `BACKBONES`.
        size: side of the images in pixels.
        input_size: side to which the model resizes them, bilinearly, as its first step.
        weights: imagenet, random (always the same ones), or a weights file of this backbone as Keras saves it.
        examples: uint8 images, (n, size, size, 3), from which random weights take their batch normalisation statistics.
        precision: float32, or bfloat16 for what its layers compute; their weights are float32.

    Raises:
        UserError: ImageNet's weights can't be downloaded, or the file does not contain this backbone's weights.
    """
    family = BACKBONES[name]
    keras.utils.set_random_seed(RANDOM_WEIGHTS_SEED)
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    resized = images if input_size == size else keras.layers.Resizing(input_size, input_size, name="resize")(images)
    scaled = family.scale(resized)
    try:
        with warnings.catch_warnings(), _computing_in(precision):
            # MobileNetV2 warns that other input sizes get the weights of 224, which is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            model = family.build(
                include_top=False,
                weights="imagenet" if weights == "imagenet" else None,
                input_tensor=scaled,
                input_shape=(input_size, input_size, 3),
                **family.options,
            )
    except Exception as error:
        if weights != "imagenet":
            raise
        raise UserError(
            f"the ImageNet weights of {name} can't be loaded ({short(error)}); connect to the network, put Keras's file "
            "into ~/.keras/models (or $KERAS_HOME/models), or set weights to random or to a weights file"
        ) from error
    if weights not in ("imagenet", "random"):
        _load_weights(model, name, Path(weights))
    model = keras.Model(images, model.output, name=name)
    if weights == "random":
        calibrate_batch_norm(model, examples)
    model.trainable = False
    return model


@contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _load_weights(model: keras.Model, name: str, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            # The weights of another network cause many of them, and then the error.
            warnings.simplefilter("ignore", UserWarning)
            model.load_weights(path)
    except Exception as error:
        raise UserError(
            f"weights: {path} is not a weights file of {name} without its top ({short(error)}); expected the .weights.h5 "
            f"or .h5 file of this network"
        ) from error
