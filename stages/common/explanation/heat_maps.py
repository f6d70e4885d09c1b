"""Where in an image the evidence for a label is: class activation maps.

After their last feature maps all models of this project are affine: an average and a linear layer, or a linear layer on the
flattened maps. So the part of a logit that each place of the maps contributes is exact, and needs no gradient: for averaged
maps it is the class activation map (Zhou et al., Learning deep features for discriminative localization, CVPR 2016), to which
Grad-CAM (Selvaraju et al., ICCV 2017) reduces there.
"""

from typing import NamedTuple

import numpy as np

from stages.common.networks.model_file import LOGITS
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError

PLACES = 64  # in memory at a time, each as large as the maps
TOLERANCE = 1e-3  # of the logits, by which the contributions may miss them


class NoMapsError(UserError):
    """The network has no feature maps, as those that attend to patches."""


class Explained(NamedTuple):
    """A model in two: from images to its last feature maps, (n, height, width, channels), and from those to its logits."""

    to_maps: keras.Model
    to_logits: keras.Model


def explained(model: keras.Model, name: str) -> Explained:
    """Divide a whole model at its last feature maps.

    Args:
        model: with a layer `LOGITS`, as train stages make them.
        name: of the model, for the message.

    Raises:
        NoMapsError: it has none.
    """
    names = [layer.name for layer in model.layers]
    before = model.layers[: names.index(LOGITS)] if LOGITS in names else []
    places = [place for place, layer in enumerate(before) if _is_map(layer)]
    if places:
        layer, following = model.layers[places[-1]], model.layers[places[-1] + 1]
        # Of a network within the network both are tensors of that one alone.
        maps = following.input if isinstance(layer, keras.Model) else layer.output
        to_maps = keras.Model(model.input, maps)
        to_logits = keras.Model(maps, model.get_layer(LOGITS).output)
        if _is_affine(to_logits):
            return Explained(to_maps, to_logits)
    raise NoMapsError(
        f"{name}: it has no feature maps from which its logits follow by a linear layer; no heat map is possible"
    )


def _is_map(layer: keras.Layer) -> bool:
    output = layer.output
    return (
        isinstance(output, keras.KerasTensor)
        and len(output.shape) == 4
        and not isinstance(layer, keras.layers.InputLayer)
    )


def _is_affine(model: keras.Model) -> bool:
    # Whole numbers are exact in every precision.
    one, other = np.random.default_rng(0).integers(0, 9, (2, 1, *model.input_shape[1:])).astype(np.float32)
    zero, first, second, both = model.predict_on_batch(np.concatenate([0 * one, one, other, one + other]))
    return bool(np.allclose(first + second - zero, both, atol=TOLERANCE, rtol=TOLERANCE))


def heat_maps(parts: Explained, images: np.ndarray) -> np.ndarray:
    """The contribution of each place to the logit of each label, compared with the mean logit of all labels.

    Args:
        parts: the model.
        images: (n, size, size, 3) uint8.

    Returns:
        (n, labels, height, width) float32. The sum over the places is the logit less the mean logit, but for a constant.
    """
    maps = parts.to_maps.predict_on_batch(images)
    height, width = maps.shape[1:3]
    found = []
    empty = _centred(parts, np.zeros_like(maps[:1]))
    for each in maps:
        logits = []
        for start in range(0, height * width, PLACES):
            rows, columns = np.divmod(np.arange(start, min(start + PLACES, height * width)), width)
            places = np.zeros((len(rows), *each.shape), each.dtype)
            places[np.arange(len(rows)), rows, columns] = each[rows, columns]
            logits.append(_centred(parts, places) - empty)
        found.append(np.concatenate(logits).T.reshape(-1, height, width))
    return np.stack(found)


def _centred(parts: Explained, maps: np.ndarray) -> np.ndarray:
    logits = parts.to_logits.predict_on_batch(maps)
    centred: np.ndarray = logits - logits.mean(axis=1, keepdims=True)
    return centred
