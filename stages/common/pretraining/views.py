"""Augmented views of images without labels: each is a function of (seed, epoch, image, view), whatever runs beside it."""

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from stages.common.dataset.chunks import Rows
from stages.common.runtime.workers import available_cores

# Whole-number arithmetic: the same bits on each processor.
BILINEAR = ResizeAlg.convolution(FilterType.bilinear)
ASPECT = 4 / 3  # of a crop, at most
GREY = 0.2  # of the views have no colour
MAX_BYTES = 256_000_000  # of batches that are made ahead
LUMA = np.array([0.299, 0.587, 0.114])


class Strength(NamedTuple):
    """How much views of an image differ.

    Attributes:
        min_area: of the image, that a view shows.
        colour: brightness, contrast and saturation are multiplied by 1 - colour to 1 + colour; 0: they stay.
    """

    min_area: float
    colour: float


class View(NamedTuple):
    """Pixels, (side, side, 3) uint8, and the change of their colours, (3, 4) float32: a matrix and what is added.

    The network changes the colours, so that bytes travel to it. A batch has one dimension more, in front.
    """

    pixels: np.ndarray
    colours: np.ndarray


def view(pixels: np.ndarray, side: int, strength: Strength, generator: np.random.Generator) -> View:
    """A random crop of a (size, size, 3) uint8 image, mirrored half of the time, and the change of its colours."""
    size = len(pixels)
    share = generator.uniform(strength.min_area, 1)
    # Of the area that is drawn, and inside the image.
    aspect = np.exp(generator.uniform(-1, 1) * np.log(min(ASPECT, 1 / share)))
    width, height = (min(float(size), size * np.sqrt(share * each)) for each in (aspect, 1 / aspect))
    left, top = generator.uniform(0, size - width), generator.uniform(0, size - height)
    mirror = generator.random() < 0.5
    crop = Image.new("RGB", (side, side))
    box = CropBox(left, top, width, height)
    Resizer().resize_pil(Image.fromarray(pixels), crop, ResizeOptions(BILINEAR, crop_box=box))
    values = np.asarray(crop)
    return View(values[:, ::-1] if mirror else values, _colours(crop, strength.colour, generator))


def _colours(crop: Image.Image, strength: float, generator: np.random.Generator) -> np.ndarray:
    brightness, contrast, saturation = 1 + strength * generator.uniform(-1, 1, size=3)
    if strength and generator.random() < GREY:
        saturation = 0.0
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    # Contrast is about the mean grey of the view.
    grey = brightness * float(np.asarray(crop.resize((1, 1), Image.Resampling.BOX))[0, 0] @ LUMA)
    return np.column_stack([matrix, np.full(3, (1 - contrast) * grey)]).astype(np.float32)


class Views:
    """Batches of two views of each image, in an order that is a function of (seed, epoch).

    All batches of an epoch have the same size, as a batch of few images says little of how embeddings vary: some images
    are skipped, other ones in each epoch.
    """

    def __init__(
        self, rows: Rows, images: list[str], side: int, batch_size: int, strength: Strength, seed: int
    ) -> None:
        self.rows, self.images, self.side, self.strength, self.seed = rows, images, side, strength, seed
        self.batch_size = min(batch_size, len(images))

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[View]:
        """All batches of an epoch: first one view of n images, then another view of the same, 2 n in all.

        Threads make the next ones while a batch is used.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        batches = iter(order[: len(self) * self.batch_size].reshape(len(self), -1))
        cores = available_cores()
        most = max(1, min(2 * cores, MAX_BYTES // (2 * self.batch_size * 3 * self.side**2)))
        ahead: deque[Future[View]] = deque()
        with ThreadPoolExecutor(cores) as pool:
            for _ in range(len(self)):
                while len(ahead) < most and (positions := next(batches, None)) is not None:
                    ahead.append(pool.submit(self._batch, epoch, positions))
                yield ahead.popleft().result()

    def _batch(self, epoch: int, positions: np.ndarray) -> View:
        count = len(positions)
        pixels = np.empty((2 * count, self.side, self.side, 3), np.uint8)
        colours = np.empty((2 * count, 3, 4), np.float32)
        for row, position in enumerate(positions.tolist()):
            name = self.images[position]
            (image,) = self.rows.read([name])
            for second in range(2):
                generator = np.random.default_rng((self.seed, epoch, zlib.crc32(name.encode()), second))
                place = row + second * count
                pixels[place], colours[place] = view(image, self.side, self.strength, generator)
        return View(pixels, colours)
