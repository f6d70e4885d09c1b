"""The networks: pretrained backbones, the heads on them, and CNNs from scratch.

Every model takes uint8 RGB images, (n, size, size, 3), and holds its own scaling, so that nothing can be fed differently
in training and later. All are flat, functional and made of Keras's own layers: they load with `safe_mode=True`.
"""

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.backend import keras
from stages.common.problem import Problem


class Family(NamedTuple):
    """How to build a pretrained backbone and what it wants its pixels to be."""

    build: Callable[..., keras.Model]
    scale: Callable[[keras.KerasTensor], keras.KerasTensor]
    options: dict[str, Any]


def _caffe(images: keras.KerasTensor) -> keras.KerasTensor:
    """VGG's preprocessing: blue first, ImageNet's mean subtracted, values up to 255."""
    blue_first = keras.ops.flip(images, axis=-1)
    return keras.layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68], name="scale")(blue_first)


def _minus_one_to_one(images: keras.KerasTensor) -> keras.KerasTensor:
    """Xception's and MobileNet's preprocessing: -1 to 1."""
    return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)


BACKBONES = {
    "vgg16": Family(keras.applications.VGG16, _caffe, {}),
    "xception": Family(keras.applications.Xception, _minus_one_to_one, {}),
    "mobilenetv2": Family(keras.applications.MobileNetV2, _minus_one_to_one, {"alpha": 0.35}),
}


# What each kind of head takes: the features' mean over height and width, or the whole maps.
TAKES = {"softmax": "pooled", "conv": "maps"}

# Not the parameter `seed`: another seed must not run the backbone over all images again.
RANDOM_WEIGHTS_SEED = 0


def backbone(
    name: str, size: int, input_size: int, weights: str, examples: np.ndarray, precision: str = "float32"
) -> keras.Model:
    """A frozen backbone without its top: uint8 images to float feature maps.

    Args:
        name: one of `BACKBONES`.
        size: side of the images in pixels.
        input_size: side to which the model enlarges or reduces them, bilinearly, before it looks at them.
        weights: imagenet, random (always the same ones), or a weights file of this backbone as Keras saves it.
        examples: uint8 images, (n, size, size, 3), from which random weights take their normalisation's statistics.
        precision: float32, or bfloat16 for what its layers compute; their weights are float32.

    Raises:
        Problem: ImageNet's weights can't be downloaded, or the file is not this backbone's weights.
    """
    family = BACKBONES[name]
    keras.utils.set_random_seed(RANDOM_WEIGHTS_SEED)
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    seen = images if input_size == size else keras.layers.Resizing(input_size, input_size, name="resize")(images)
    scaled = family.scale(seen)
    try:
        with warnings.catch_warnings(), _computing_in(precision):
            # MobileNetV2 warns that other sizes than its own get the weights of 224: just what is wanted.
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
        raise Problem(
            f"the ImageNet weights of {name} can't be loaded ({_short(error)}); connect to the network, put Keras's file "
            "into ~/.keras/models (or $KERAS_HOME/models), or set weights to random or to a weights file"
        ) from error
    if weights not in ("imagenet", "random"):
        _load_weights(model, name, Path(weights))
    model = keras.Model(images, model.output, name=name)
    if weights == "random":
        _calibrate(model, examples)
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


def _calibrate(model: keras.Model, examples: np.ndarray) -> None:
    """Set BatchNormalization's statistics from `examples`: without it random weights let the signal die (1e-11 in MobileNetV2)."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(examples, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def folded(model: keras.Model) -> keras.Model:
    """A copy for inference: each BatchNormalization right after a convolution is taken into its weights.

    The same function up to rounding, in fewer passes over memory (Jacob et al., Quantization and training of neural
    networks for efficient integer-arithmetic-only inference, CVPR 2018, section 3.2).
    """
    kinds = keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D
    convolutions = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, kinds) and layer.activation is keras.activations.linear
    }
    uses = Counter(id(tensor) for layer in model.layers for tensor in keras.tree.flatten(layer.input))
    norms = {
        convolutions[id(layer.input)].name: layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and id(layer.input) in convolutions
        and uses[id(layer.input)] == 1
    }
    gone = {norm.name for norm in norms.values()}

    def biased(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | ({"use_bias": True} if layer.name in norms else {}))

    def without(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        return inputs[0] if layer.name in gone else layer(*inputs, **options)

    copy = keras.models.clone_model(model, clone_function=biased, call_function=without)
    for layer in model.layers:
        if layer.weights and layer.name not in gone:
            norm = norms.get(layer.name)
            copy.get_layer(layer.name).set_weights(_with_norm(layer, norm) if norm else layer.get_weights())
    return copy


def _with_norm(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """The weights of a convolution, with a bias, that does what it and the normalisation after it do."""
    values = dict(zip((weight.name for weight in norm.weights), norm.get_weights(), strict=True))
    scale = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    *first, kernel = layer.get_weights()[:-1] if layer.use_bias else layer.get_weights()
    bias = layer.get_weights()[-1] if layer.use_bias else 0.0
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return [*first, kernel, values.get("beta", 0.0) + (bias - values["moving_mean"]) * scale]


def _load_weights(model: keras.Model, name: str, path: Path) -> None:
    try:
        model.load_weights(path)
    except Exception as error:
        raise Problem(
            f"weights: {path} is not a weights file of {name} without its top ({_short(error)}); expected the .weights.h5 "
            f"or .h5 file of this very network"
        ) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _direction(pooled: keras.KerasTensor) -> keras.KerasTensor:
    """The direction of the features' roots; what is added keeps the slope at 0 finite, for fine-tuning."""
    # Layers with names: what Keras would name by itself may bear the name of a layer of the backbone.
    positive = keras.layers.Rescaling(1.0, offset=1e-4, name="head_offset")(pooled)
    roots = keras.ops.sqrt(positive)
    return keras.layers.UnitNormalization(name="head_direction")(roots)


def head(
    kind: str, labels: int, dropout: float, penalty: float, features: Iterable[np.ndarray]
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """Layers from feature maps or pooled features to logits; to be called on several inputs, which then share weights.

    Head softmax takes the root of the features and then their direction alone (Perronnin et al., Improving the Fisher
    kernel for large-scale image classification, ECCV 2010), standardised.

    Args:
        kind: softmax (pooled features, (n, channels)) or conv (feature maps, (n, height, width, channels)).
        labels: number of logits.
        dropout: fraction of the features dropped in training.
        penalty: factor of |W|^2 in the loss, of the last layer's weights W.
        features: blocks, (any, channels), of the training images' pooled features, none negative: head softmax
            standardises by them.
    """
    if kind == "conv":
        layers = [
            keras.layers.Conv2D(128, 1, use_bias=False, name="head_squeeze"),
            keras.layers.BatchNormalization(momentum=0.9, name="head_squeeze_norm"),
            keras.layers.Activation("relu", name="head_squeeze_relu"),
            keras.layers.Conv2D(128, 3, padding="same", use_bias=False, name="head_conv"),
            keras.layers.BatchNormalization(momentum=0.9, name="head_conv_norm"),
            keras.layers.Activation("relu", name="head_conv_relu"),
            keras.layers.GlobalAveragePooling2D(name="head_pool"),
        ]
    else:
        mean, variance = _moments(keras.ops.convert_to_numpy(_direction(block)) for block in features)
        # A feature that hardly varies is noise: it is not blown up.
        variance = np.maximum(variance, max(1e-2 * variance.mean(), 1e-12))
        layers = [_direction, keras.layers.Normalization(mean=mean, variance=variance, name="head_standardise")]
    regularizer = keras.regularizers.L2(penalty) if penalty else None
    layers += [
        keras.layers.Dropout(dropout, name="head_dropout"),
        keras.layers.Dense(labels, kernel_regularizer=regularizer, dtype="float32", name="logits"),
    ]

    def apply(features: keras.KerasTensor) -> keras.KerasTensor:
        for layer in layers:
            features = layer(features)
        return features

    return apply


def _moments(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over the rows of all blocks, (channels,) float32 each."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        values = block.astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    mean = total / count
    return mean.astype(np.float32), (squares / count - mean**2).clip(0).astype(np.float32)


def after_backbone(model: keras.Model, kind: str) -> keras.Model:
    """The part of a whole, loaded model that a head of this kind is: what the head takes to the model's output.

    Raises:
        Problem: the model has another kind of head.
    """
    first = {"softmax": "head_offset", "conv": "head_squeeze"}[kind]
    if first not in [layer.name for layer in model.layers]:
        raise Problem(f"the model {model.name} has no head {kind}; train it again with dvc repro")
    return keras.Model(model.get_layer(first).input, model.output)


def scratch(size: int, pool: int, filters: list[int], dropout: float, labels: int) -> keras.Model:
    """A CNN to be trained from nothing: uint8 images to logits.

    Args:
        size: side of the images in pixels.
        pool: each pool x pool pixels are averaged first.
        filters: one block a number, its width; each halves the side.
        dropout: fraction of the last block's values dropped in training.
        labels: number of logits.
    """
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)
    x = keras.layers.AveragePooling2D(pool, name="shrink")(x)
    for block, width in enumerate(filters, start=1):
        # Strides in place of pooling: a quarter of the work, which is what a CPU notices.
        x = keras.layers.Conv2D(width, 3, 2, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{block}")(x)
        x = keras.layers.Activation("relu", name=f"relu{block}")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(keras.layers.Flatten(name="flatten")(x))
    return keras.Model(images, keras.layers.Dense(labels, dtype="float32", name="logits")(x), name="scratch")


def unfreeze(model: keras.Model, layers: int) -> None:
    """Make the last `layers` layers of a backbone with weights trainable, but for BatchNormalization.

    Its statistics belong to ImageNet's millions of images: a few hundred others only spoil them.
    """
    weighted = [layer for layer in model.layers if layer.weights]
    for layer in weighted[-layers:]:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)


def epoch_seed(seed: int, epoch: int) -> int:
    """A 32-bit number for what is random in one epoch: a function of the seed and the epoch alone."""
    return zlib.crc32(f"{seed} {epoch}".encode())


def reset_randomness(model: keras.Model, seed: int, epoch: int) -> None:
    """Set the state of the model's random layers to a function of (seed, epoch), whatever ran before."""
    for number, variable in enumerate(v for v in model.variables if v.path.endswith("seed_generator_state")):
        variable.assign(keras.ops.array([epoch_seed(seed, epoch), number], dtype=variable.dtype))
