"""A heat map over its picture, without Keras."""

import numpy as np
from PIL import Image

# From nothing to the most: viridis, which the colour-blind can read, and whose brightness rises.
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
MIN_OPACITY, MAX_OPACITY = 0.15, 0.65


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture with the evidence for a label over it: yellow where it is most, violet where there is none or less.

    Args:
        picture: (height, width, 3) uint8.
        heat: of that label, (any, any) float.

    Returns:
        (height, width, 3) uint8.
    """
    positive = np.maximum(heat, 0)
    share = positive / positive.max() if positive.max() > 0 else positive
    image = Image.fromarray(share.astype(np.float32))
    height, width = picture.shape[:2]
    share = np.clip(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(share, steps, channel) for channel in COLOURS.T], axis=-1)
    opacity = (MIN_OPACITY + (MAX_OPACITY - MIN_OPACITY) * share)[..., None]
    return np.asarray(np.round((1 - opacity) * picture + opacity * colours), np.uint8)
