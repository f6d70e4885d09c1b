"""Batches, read row by row while the model trains; order and augmentation are functions of (seed, epoch)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.common.dataset.chunks import Rows

MIN_AREA = 0.6  # of the image, that an augmented view shows


class Part(NamedTuple):
    """Some images and the numbers of their labels, (n,) int."""

    names: list[str]
    labels: np.ndarray


class Shuffle(NamedTuple):
    """What is random in the batches of an epoch. `augment` also varies the images, which must then be uint8 RGB."""

    seed: int
    epoch: int
    augment: bool


class Batches:
    """One pass over `part`: rows as they are stored, and one-hot targets, (n, classes) float32."""

    def __init__(self, rows: Rows, part: Part, classes: int, batch_size: int, shuffle: Shuffle | None = None) -> None:
        self.rows, self.part, self.batch_size, self.shuffle = rows, part, batch_size, shuffle
        self.targets = np.eye(classes, dtype=np.float32)
        images = len(part.names)
        self.order = np.arange(images)
        if shuffle:
            self.order = np.random.default_rng((shuffle.seed, shuffle.epoch)).permutation(images)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All batches in order; if they are augmented, a thread makes the next one while the last one is used."""
        if not (self.shuffle and self.shuffle.augment):  # reading alone takes less time than a thread switch
            yield from map(self.__getitem__, range(len(self)))
            return
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self.__getitem__, 0)
            for index in range(1, len(self) + 1):
                current = following.result()
                if index < len(self):
                    following = pool.submit(self.__getitem__, index)
                yield current

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        positions = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = self.rows.read([self.part.names[position] for position in positions.tolist()])
        if self.shuffle and self.shuffle.augment:
            for row, position in zip(rows, positions, strict=True):
                row[:] = augment(row, np.random.default_rng((self.shuffle.seed, self.shuffle.epoch, position)))
        return rows, self.targets[self.part.labels[positions]]


def augment(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirror a (size, size, 3) uint8 image half of the time, and enlarge a random part of it to the same size.

    By Pillow instead of Keras layers: the same on each backend, and a function of `generator` alone.
    """
    size = len(pixels)
    side = size * np.sqrt(generator.uniform(MIN_AREA, 1))
    left, top = generator.uniform(0, size - side, size=2)
    box = (left, top, left + side, top + side)
    image = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box))
    return image[:, ::-1] if generator.random() < 0.5 else image
