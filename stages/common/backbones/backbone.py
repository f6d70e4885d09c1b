"""Any pretrained network as a Keras model, from uint8 images to features.

It contains its own resizing and scaling, so that training and prediction can't differ in them. It is functional, and a file
of it loads with `safe_mode=True`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.backbones.batch_norm import calibrate_batch_norm
from stages.common.backbones.network import Network
from stages.common.runtime.backend import Layers, keras, weights_not_drawn
from stages.common.runtime.errors import UserError, short

# Not the parameter `seed`: a new seed must not run the backbone over all images again.
RANDOM_WEIGHTS_SEED = 0

# keras.applications' modes of preprocessing, as a scale and offsets of RGB (caffe: BGR) from 0 to 255.
SCALINGS: dict[str, tuple[Any, Any]] = {
    "caffe": (1.0, [-103.939, -116.779, -123.68]),
    "tf": (1 / 127.5, -1.0),
    "torch": ([1 / (255 * std) for std in (0.229, 0.224, 0.225)], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
}


class Built(NamedTuple):
    """A network, its preprocessing, and the side of its images in pixels.

    `apply` calls it on square RGB images of that side that `scale` made; the result is feature maps (4 axes) or pooled
    features (2 axes).
    """

    model: keras.Model
    scale: Layers
    input_size: int
    apply: Layers
    interpolation: str = "bilinear"


def backbone(
    network: Network,
    size: int,
    input_size: int | None,
    weights: str,
    examples: np.ndarray,
    precision: str = "float32",
) -> keras.Model:
    """A frozen backbone without its top: uint8 images to float feature maps, or to pooled features if it has no maps.

    Args:
        network: what to build.
        size: side of the images in pixels.
        input_size: side to which the model resizes them, as its first step; None: that which the network was trained with.
        weights: imagenet (of a KerasHub preset: its own), random (always the same ones), or a weights file of this
            backbone as Keras saves it.
        examples: uint8 images, (n, size, size, 3), from which random weights take their batch normalisation statistics.
        precision: float32, or bfloat16 for what its layers compute; their weights are float32.

    Raises:
        UserError: the weights can't be loaded, the file does not contain this backbone's weights, or a preset is not one of
            a network of images.
    """
    keras.utils.set_random_seed(RANDOM_WEIGHTS_SEED)
    with warnings.catch_warnings(), _computing_in(precision):
        # MobileNetV2 warns that other input sizes get the weights of 224, which is what is wanted.
        warnings.simplefilter("ignore", UserWarning)
        with nullcontext() if weights == "random" else weights_not_drawn():
            built = _build(network, input_size, weights == "imagenet")
    if weights not in ("imagenet", "random"):
        _load_weights(built.model, network.name, Path(weights))
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    side = built.input_size
    resize = keras.layers.Resizing(side, side, interpolation=built.interpolation, name="resize")
    resized = images if side == size else resize(images)
    model = keras.Model(images, built.apply(built.scale(resized)), name=built.model.name)
    if network.source != "hub":  # KerasHub's networks can be saved only as they are
        model = inline(model)
    if weights == "random":
        calibrate_batch_norm(inline(model), examples)
    model.trainable = False
    return model


def _build(network: Network, input_size: int | None, pretrained: bool) -> Built:
    # Imported here: a stage depends on the code that it loads, and VGG16's features on none of the other networks'.
    if network.source == "hub":
        from stages.common.backbones.hub import load_preset

        return load_preset(network.name, input_size, pretrained)
    side = input_size or network.input_size or 0
    if network.source == "efficientnet_lite":
        from stages.common.backbones.efficientnet_lite import efficientnet_lite, scale

        lite = efficientnet_lite(network.name, side, pretrained)
        return Built(lite, scale, side, lite)
    return _application(network, side, pretrained)


def _application(network: Network, side: int, pretrained: bool) -> Built:
    make = getattr(keras.applications, network.name)
    weights = "imagenet" if pretrained else None
    try:
        model = make(include_top=False, weights=weights, input_shape=(side, side, 3), **network.options)
    except Exception as error:
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {network.name} can't be loaded ({short(error)}); connect to the network, put Keras's "
            "file into ~/.keras/models (or $KERAS_HOME/models), or set weights to random or to a weights file"
        ) from error

    def scale(images: keras.KerasTensor) -> keras.KerasTensor:
        if network.scaling == "included":
            return images
        factor, offset = SCALINGS[network.scaling]
        ordered = keras.ops.flip(images, axis=-1) if network.scaling == "caffe" else images
        return keras.layers.Rescaling(factor, offset, name="scale")(ordered)

    return Built(model, scale, side, model)


def inline(model: keras.Model) -> keras.Model:
    """The same function and layers, with those of models inside `model` in place of these."""
    images = keras.Input(model.input.shape[1:], dtype=model.input.dtype, name=model.input.name)
    return keras.Model(images, _graft(model, images, images), name=model.name)


def _graft(model: keras.Model, images: keras.KerasTensor, x: keras.KerasTensor) -> keras.KerasTensor:
    """The output of the layers of `model` for `x`, which is made of `images`."""
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = layer(x)
        return x

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        inputs = keras.tree.map_structure(lambda tensor: x if tensor is images else tensor, inputs)
        if isinstance(layer, keras.Model):
            return _graft(layer, images, keras.tree.flatten(inputs)[0])
        return layer(*inputs, **options)

    on_images = keras.tree.map_structure(lambda _: images, model.input)
    with warnings.catch_warnings():
        # A network of KerasHub may call its input something else.
        warnings.simplefilter("ignore", UserWarning)
        return keras.models.clone_model(model, on_images, clone_function=lambda layer: layer, call_function=call).output


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
