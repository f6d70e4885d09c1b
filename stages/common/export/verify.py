"""An exported model beside Keras, on the same images."""

from typing import NamedTuple

import numpy as np

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import images_of, read_split
from stages.common.export.formats import Run
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError

IMAGES = 256
DRAWN = 64
BATCH = 32
MAX_DIFFERENCE = 1e-3  # of a probability


class Comparison(NamedTuple):
    """The largest difference of a probability, and the fraction of images with the same label."""

    difference: float
    agreement: float


def images_to_compare(size: int) -> tuple[np.ndarray, str]:
    """At most `IMAGES` test photographs, spread over the test part, or if there are none of this size, drawn images.

    Returns:
        (n, size, size, 3) uint8, and what they are.
    """
    if paths.SPLIT.exists() and paths.RESIZED.is_dir():
        rows = Rows(paths.RESIZED, "pixels")
        if rows.shape == (size, size, 3):
            names = list(images_of(read_split(), "test", rows)["image"])
            chosen = sorted(set(np.linspace(0, len(names) - 1, IMAGES).astype(int)))
            return rows.read([names[place] for place in chosen]), f"{len(chosen)} test images"
    return _drawn(size), f"{DRAWN} drawn images (no test images of {size} x {size} pixels here)"


def _drawn(size: int) -> np.ndarray:
    """Squares of random colours, from the whole image to single pixels, (DRAWN, size, size, 3) uint8."""
    generator = np.random.default_rng(0)
    images = np.empty((DRAWN, size, size, 3), np.uint8)
    for image in images:
        side = int(generator.integers(1, size + 1))
        count = -(-size // side)
        squares = generator.integers(0, 256, (count, count, 3), dtype=np.uint8)
        image[:] = squares.repeat(side, axis=0).repeat(side, axis=1)[:size, :size]
    return images


def expected_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What Keras says of the images, (n, labels) float32. Before the model is exported: the graph shares its weights."""
    return np.concatenate([model.predict_on_batch(batch) for batch in _batches(images)])


def compare(run: Run, images: np.ndarray, expected: np.ndarray) -> Comparison:
    """What the exported model `run` says of the images, beside what Keras says of them.

    Raises:
        UserError: the exported model's output is not one row of probabilities for each image.
    """
    found = np.concatenate([run(batch) for batch in _batches(images)])
    if found.shape != expected.shape or found.dtype != np.float32:
        raise UserError(f"its output is {found.dtype} {found.shape}; expected float32 {expected.shape}")
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return Comparison(float(np.abs(found - expected).max()), agreement)


def _batches(images: np.ndarray) -> list[np.ndarray]:
    """One image, and batches of the others: the size of a batch must not matter."""
    return np.split(images, range(1, len(images), BATCH))
