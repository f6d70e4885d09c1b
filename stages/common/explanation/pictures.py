"""Photographs with heat maps over them."""

from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.explanation.heat_maps import Explained, heat_maps
from stages.common.explanation.overlay import overlay
from stages.common.images.decoding import decode, dimensions
from stages.common.runtime.files import new_file, write_error

STEM = 50  # letters of a photograph's name in that of its picture
MAX_SIDE = 640  # pixels of the longer side


def picture(parts: Explained, path: Path, label: int) -> Image.Image:
    """The photograph in `path`, in its own proportions, with the evidence for `label`, an index of the model's labels.

    Raises:
        DecodeError: it can't be decoded.
    """
    size = parts.to_maps.input_shape[1]
    heat = heat_maps(parts, decode(path, size)[None])[0, label]
    return Image.fromarray(overlay(photograph(path), heat))


def photograph(path: Path) -> np.ndarray:
    """The photograph in `path` upright, in its own proportions, at most `MAX_SIDE` pixels long: (height, width, 3) uint8.

    Raises:
        DecodeError, OSError: it can't be decoded.
    """
    width, height = dimensions(path)
    scale = min(1.0, MAX_SIDE / max(width, height))
    shape = max(1, round(scale * width)), max(1, round(scale * height))
    return np.asarray(Image.fromarray(decode(path, max(shape))).resize(shape, Image.Resampling.LANCZOS))


class Pictures:
    """Writes photographs with heat maps into `folder`, as NUMBER-NAME.png in the order of the calls.

    Raises:
        UserError: the folder can't be made, or a picture not be written.
    """

    def __init__(self, folder: Path, parts: Explained) -> None:
        self.folder, self.parts, self.count = folder, parts, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error

    def write(self, path: Path, probabilities: np.ndarray) -> None:
        """Write the photograph in `path` with the evidence for its most probable label."""
        self.count += 1
        made = picture(self.parts, path, int(probabilities.argmax()))
        with new_file(self.folder / f"{self.count:05d}-{path.stem[:STEM]}.png") as temporary:
            made.save(temporary, "PNG")
