"""A trained model as a graph of layers that every format can express."""

from collections.abc import Callable
from typing import Any

import numpy as np

from stages.common.backbones.backbone import inline
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.runtime.backend import keras, weights_not_drawn

# From a layer and its input to an output.
Substitute = Callable[[keras.Layer, keras.KerasTensor], keras.KerasTensor]


def is_float32(model: keras.Model) -> bool:
    """Whether all layers compute in float32."""
    return all(layer.compute_dtype == "float32" for layer in inline(model).layers)


def in_float32(model: keras.Model) -> keras.Model:
    """The same layers and weights, computing in float32."""
    return _rebuilt(inline(model), {})


def exportable(model: keras.Model) -> keras.Model:
    """The same function as `model`: flat, in float32, batch normalisation folded, resizing as matrix products.

    Keras's Resizing would become other values: Keras on JAX rounds them to whole numbers, and its exporters don't agree on
    bicubic interpolation, or on a batch whose size is not known.

    Returns:
        uint8 images, (n, size, size, 3), to float32 probabilities, (n, labels).
    """
    # In two steps: a substitute takes the weights of its layer, and those of a new layer in float32 are set at the end.
    return _rebuilt(_rebuilt(fold_batch_norm(inline(model)), {}), SUBSTITUTES)


def _rebuilt(model: keras.Model, substitutes: dict[type, Substitute]) -> keras.Model:
    """Each layer in float32, or its substitute, with a name that TensorFlow takes as the first of a scope."""
    made: list[tuple[keras.Layer, keras.Layer]] = []

    def replace(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.InputLayer):
            return layer
        name = layer.name if layer.name[0].isalnum() else f"layer{layer.name}"
        if (layer.name, layer.compute_dtype) == (name, "float32"):
            return layer
        made.append((type(layer).from_config(layer.get_config() | {"name": name, "dtype": "float32"}), layer))
        return made[-1][0]

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        substitute = substitutes.get(type(layer))
        return substitute(layer, *inputs) if substitute else layer(*inputs, **options)

    with weights_not_drawn():
        copy = keras.models.clone_model(model, clone_function=replace, call_function=call)
    for layer, original in made:
        if layer.weights:
            layer.set_weights(original.get_weights())
    return copy


def _depthwise(layer: keras.layers.Conv2D, maps: keras.KerasTensor) -> keras.KerasTensor:
    """A convolution of as many groups as channels, which TensorFlow compiles into what tf2onnx can't read."""
    config = layer.get_config()
    if not 1 < config.pop("groups") == maps.shape[-1]:
        return layer(maps)
    config["depthwise_initializer"], multiplier = (
        config.pop("kernel_initializer"),
        config.pop("filters") // maps.shape[-1],
    )
    for kind in ("regularizer", "constraint"):
        config[f"depthwise_{kind}"] = config.pop(f"kernel_{kind}")
    depthwise = keras.layers.DepthwiseConv2D.from_config(config | {"depth_multiplier": multiplier})
    result = depthwise(maps)
    kernel, *bias = layer.get_weights()
    depthwise.set_weights([kernel.reshape(*kernel.shape[:2], maps.shape[-1], multiplier), *bias])
    return result


def _resized(layer: keras.Layer, images: keras.KerasTensor) -> keras.KerasTensor:
    """What Keras's Resizing computes for square images, (n, size, size, 3) uint8: float32 of its side.

    Every interpolation is linear in the pixels, and height and width are apart: two products with one matrix.
    """
    # Images that are all one in one row: resized, each of their columns is that row's weights.
    rows = np.eye(images.shape[1], dtype="float32")[:, :, None, None]
    matrix = keras.ops.convert_to_numpy(layer(rows))[:, :, 0, 0]

    def along_last(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        product = keras.layers.Dense(matrix.shape[1], use_bias=False, name=f"{layer.name}_{name}")
        result = product(x)
        product.set_weights([matrix])
        return result

    x = keras.layers.Rescaling(1.0, name=f"{layer.name}_float")(images)
    x = along_last(keras.layers.Permute((3, 2, 1), name=f"{layer.name}_columns")(x), "height")
    x = along_last(keras.layers.Permute((1, 3, 2), name=f"{layer.name}_rows")(x), "width")
    x = keras.layers.Permute((2, 3, 1), name=f"{layer.name}_channels")(x)
    if keras.backend.backend() == "jax":
        # There Keras keeps the type of the images, uint8; TensorFlow converts them to float32 first.
        x = keras.ops.clip(keras.ops.round(x), 0, 255)
    return x


SUBSTITUTES: dict[type, Substitute] = {keras.layers.Conv2D: _depthwise, keras.layers.Resizing: _resized}
