"""Photographs of one size, made of others, and how close a resized one is to the best."""

import io
from bisect import bisect_left
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.competitors import whole


def make_photographs(photographs: list[Path], shape: tuple[int, int], wanted: int, folder: Path) -> list[Path]:
    """Make JPEGs of `shape` (width, height) of the photographs, of `wanted` bytes on average, or of quality 100 if that is less."""

    def encoded(image: Image.Image, quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        return buffer.getvalue()

    every_fourth = [Image.fromarray(whole(file, shape)) for file in photographs[::4]]
    qualities = range(2, 100)
    quality = 2 + bisect_left(
        qualities,
        wanted,
        key=lambda quality: sum(len(encoded(image, quality)) for image in every_fourth) // len(every_fourth),
    )
    folder.mkdir()
    total = 0
    for number, file in enumerate(photographs, start=1):
        image = Image.fromarray(whole(file, shape))
        content = encoded(image, quality)
        if total + len(content) > wanted * number:
            content = encoded(image, quality - 1)
        total += len(content)
        (folder / file.name).write_bytes(content)
    return [folder / file.name for file in photographs]


def psnr(file: Path, pixels: np.ndarray) -> float:
    """PSNR in dB of `pixels`, (height, width, 3) uint8, to the whole image of that file resized by Lanczos; at most 78."""
    expected = whole(file, (pixels.shape[1], pixels.shape[0]))
    error = np.mean((pixels.astype(float) - expected) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))
