"""Image backbones of KerasHub, from the name of a preset or from the folder of one."""

from typing import Any

import keras_hub

from stages.common.backbones.backbone import Built
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError, short

INPUT_SIZE = 224  # if neither the network nor its image converter says one


def load_preset(name: str, input_size: int | None, pretrained: bool) -> Built:
    """Load a preset's backbone, and the scaling and interpolation of its image converter.

    Its features are maps, (n, height, width, channels), or (n, channels) if it computes tokens: see `_pooled`.

    Args:
        name: of the preset, a kaggle:// or hf:// handle, or a folder, as KerasHub's `from_preset` takes it.
        input_size: side of its images; None: what the preset says.
        pretrained: with the preset's weights, else with random ones.

    Raises:
        UserError: KerasHub can't load it, or it is not a network from one image to features.
    """
    shape = {} if input_size is None else {"image_shape": (input_size, input_size, 3)}
    try:
        backbone = keras_hub.models.Backbone.from_preset(
            name, load_weights=pretrained, dtype=keras.config.dtype_policy().name, **shape
        )
    except Exception as error:
        size = "" if input_size is None else " with input_size auto, or"
        raise UserError(
            f"backbone.name is 'hub:{name}', which KerasHub can't load ({short(error, 300)}); expected{size} the name of a "
            "preset of image backbones, or a folder that save_to_preset wrote"
        ) from error
    if len(backbone.inputs) != 1 or len(backbone.inputs[0].shape) != 4:
        raise UserError(
            f"backbone.name is 'hub:{name}', a {type(backbone).__name__} of {len(backbone.inputs)} inputs; expected a network "
            "from one image to features"
        )
    converter = _image_converter(name)
    side = backbone.inputs[0].shape[1] or input_size or (converter.image_size or (INPUT_SIZE,))[0]

    def scale(images: keras.KerasTensor) -> keras.KerasTensor:
        factor = 1.0 if converter.scale is None else converter.scale
        offset = 0.0 if converter.offset is None else converter.offset
        return keras.layers.Rescaling(factor, offset, name="scale")(images)

    def apply(images: keras.KerasTensor) -> keras.KerasTensor:
        return _pooled(backbone, backbone(keras.tree.map_structure(lambda _: images, backbone.input)))

    return Built(backbone, scale, side, apply, converter.interpolation)


def _image_converter(name: str) -> Any:
    try:
        return keras_hub.layers.ImageConverter.from_preset(name)
    except Exception as error:
        print(f"hub:{name} has no image converter ({short(error)}): its pixels are not scaled, 0 to 255")
        return keras_hub.layers.ImageConverter()


def _pooled(backbone: Any, output: Any) -> keras.KerasTensor:
    """The last of the maps; of tokens, (n, tokens, channels), what their authors use for linear probing, (n, channels).

    ViT (Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021) and DeiT (Touvron et al., ICML 2021): the class
    token. DINOv2 (Oquab et al., TMLR 2024, appendix B.3) and DINOv3 (Siméoni et al., 2025): the class token and the mean
    of the patches' tokens, (n, 2 channels). Others, as Swin (Liu et al., ICCV 2021): the mean of all tokens.
    """
    tokens = list(output.values())[-1] if isinstance(output, dict) else output
    if len(tokens.shape) != 3:
        return tokens
    kind = type(backbone).__name__
    mean = keras.layers.GlobalAveragePooling1D(name="mean_token")
    if kind.startswith("DINO"):
        patches = tokens[:, 1 + backbone.num_register_tokens :]
        return keras.layers.Concatenate(name="class_and_mean_token")([tokens[:, 0], mean(patches)])
    if kind.startswith("DeiT") or getattr(backbone, "use_class_token", False):
        return tokens[:, 0]
    return mean(tokens)
