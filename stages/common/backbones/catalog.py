"""The networks that model `backbone` can use, by name. Without Keras: the check of parameters reads it.

To add a network of keras.applications, add a line. `options` are arguments of its function there.
"""

import importlib.util

from stages.common.backbones.network import FIXED, Network
from stages.common.runtime.errors import UserError

HUB = "hub:"
NETWORKS = {
    # In requirements.txt; the weights of the other two are packages that the error which asks for them names.
    "efficientnet_lite0": Network("efficientnet_lite", "efficientnet_lite0", 224),
    "efficientnet_lite1": Network("efficientnet_lite", "efficientnet_lite1", 240),
    "efficientnet_lite2": Network("efficientnet_lite", "efficientnet_lite2", 260),
    **FIXED,
    "convnext_base": Network("applications", "ConvNeXtBase", 224),
    "convnext_small": Network("applications", "ConvNeXtSmall", 224),
    "convnext_tiny": Network("applications", "ConvNeXtTiny", 224),
    "densenet121": Network("applications", "DenseNet121", 224, "torch"),
    "densenet169": Network("applications", "DenseNet169", 224, "torch"),
    "densenet201": Network("applications", "DenseNet201", 224, "torch"),
    "efficientnetv2b0": Network("applications", "EfficientNetV2B0", 224),
    "efficientnetv2b1": Network("applications", "EfficientNetV2B1", 240),
    "efficientnetv2b2": Network("applications", "EfficientNetV2B2", 260),
    "efficientnetv2b3": Network("applications", "EfficientNetV2B3", 300),
    "efficientnetv2s": Network("applications", "EfficientNetV2S", 384),
    "efficientnetv2m": Network("applications", "EfficientNetV2M", 480),
    "inceptionv3": Network("applications", "InceptionV3", 299, "tf", min_input=75),
    "mobilenet": Network("applications", "MobileNet", 224, "tf", options={"alpha": 0.25}),
    "mobilenetv2": Network("applications", "MobileNetV2", 224, "tf", options={"alpha": 0.35}),
    "mobilenetv3large": Network("applications", "MobileNetV3Large", 224),
    "mobilenetv3small": Network("applications", "MobileNetV3Small", 224),
    "resnet50v2": Network("applications", "ResNet50V2", 224, "tf"),
    "resnet101v2": Network("applications", "ResNet101V2", 224, "tf"),
    "resnet152v2": Network("applications", "ResNet152V2", 224, "tf"),
}


def find(name: str) -> Network:
    """The network of this name, or of the KerasHub preset in `hub:PRESET` or `hub:FOLDER`.

    Raises:
        UserError: there is no such network, or KerasHub is not installed.
    """
    if name.startswith(HUB) and len(name) > len(HUB):
        if importlib.util.find_spec("keras_hub") is None:
            raise UserError(f"backbone.name is {name!r}, which needs KerasHub; pip install -r requirements-hub.txt")
        return Network("hub", name.removeprefix(HUB), None)
    if name not in NETWORKS:
        raise UserError(f"backbone.name is {name!r}; allowed are {', '.join(NETWORKS)}, hub:PRESET and hub:FOLDER")
    return NETWORKS[name]
