"""Batch normalisation of a frozen network: its statistics for random weights, and folding it into convolutions."""

from collections import Counter
from typing import Any

import numpy as np

from stages.common.runtime.backend import keras, weights_not_drawn


def calibrate_batch_norm(model: keras.Model, examples: np.ndarray) -> None:
    """Set the statistics of each BatchNormalization from `examples`, in place.

    Without it the signal of random weights vanishes: MobileNetV2's feature maps are at 1e-11.

    Args:
        model: any model with one input.
        examples: a batch of its input.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(examples, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A model for inference: each BatchNormalization directly after a convolution is folded into its weights.

    The same function up to rounding, in fewer passes over memory (Jacob et al., Quantization and training of neural
    networks for efficient integer-arithmetic-only inference, CVPR 2018, section 3.2). It shares its other layers with
    `model`.
    """
    norms = _foldable(model)
    folded = {norm.name for norm in norms.values()}

    def replace(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | {"use_bias": True}) if layer.name in norms else layer

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        return inputs[0] if layer.name in folded else layer(*inputs, **options)

    with weights_not_drawn():
        copy = keras.models.clone_model(model, clone_function=replace, call_function=call)
    for name, norm in norms.items():
        copy.get_layer(name).set_weights(_folded_weights(model.get_layer(name), norm))
    return copy


def _foldable(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """By the name of the convolution: the BatchNormalization that alone uses its output, without an activation between."""
    kinds = keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D
    convolutions = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, kinds) and layer.activation is keras.activations.linear
    }
    uses = Counter(id(tensor) for layer in model.layers for tensor in keras.tree.flatten(layer.input))
    return {
        convolutions[id(layer.input)].name: layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and id(layer.input) in convolutions
        and uses[id(layer.input)] == 1
    }


def _folded_weights(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """The weights of a convolution with a bias that computes what `layer` and then `norm` compute."""
    values = dict(zip((weight.name for weight in norm.weights), norm.get_weights(), strict=True))
    scale = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    *first, kernel = layer.get_weights()[:-1] if layer.use_bias else layer.get_weights()
    bias = layer.get_weights()[-1] if layer.use_bias else 0.0
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return [*first, kernel, values.get("beta", 0.0) + (bias - values["moving_mean"]) * scale]
