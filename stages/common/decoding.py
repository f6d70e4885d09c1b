"""One way from an image file to pixels, for the pipeline and for predict."""

import errno
import stat
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, WebPImagePlugin

# The formats that photographs come in: Pillow's other decoders are only ways to be attacked.
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)


# The size to which libjpeg may reduce, in multiples of the size wanted. At 1, 480-line photographs are worst: 39 dB.
LEAST_REDUCED = 1.3


# Errors of the system, which may be gone with the next try.
MOMENTARY = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}

# What turns an image upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that can't be decoded, with the reason."""


def decode(path: Path, size: int) -> np.ndarray:
    """Decode an image upright, as 8-bit RGB, resized to a square by Lanczos.

    JPEGs are decoded at a scale of libjpeg's that is still larger than `size`: at 44 dB or more to decoding them whole,
    three times as fast. All else is resized by Pillow.

    Args:
        path: a file in one of `FORMATS`, whatever its name says.
        size: side of the result in pixels.

    Returns:
        (size, size, 3) uint8.

    Raises:
        BadImage: not a file, not an image, broken, or of more pixels than Pillow takes for harmless.
        OSError, MemoryError: the system's fault, not the image's.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImage("not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, which harm nothing
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                image: Image.Image = file
                whole, box = image.size, None
                if (turn := UPRIGHT.get(_orientation(image))) is None:
                    drafted = image.draft(None, (round(size * LEAST_REDUCED), round(size * LEAST_REDUCED)))
                    box = drafted[1] if drafted else None
                else:
                    image = image.transpose(turn)
                if box and image.size != whole:
                    return _squared(np.asarray(_rgb(image)), size, box[2:])
                return np.asarray(_rgb(image).resize((size, size), Image.Resampling.LANCZOS, box=box))
    except (BadImage, MemoryError):
        raise
    except OSError as error:
        if error.errno in MOMENTARY:
            error.filename = str(path)
            raise
        raise BadImage(error.strerror or str(error).replace(f" {str(path)!r}", "")) from error
    except Exception as error:  # decoders of broken files raise whatever comes to hand
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken tag is no reason to lose a whole photograph
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion cuts 16-bit values off at 255.
        values = np.asarray(image).astype(np.int64)
        if isinstance(transparent := image.info.get("transparency"), int):
            values = np.where(values == transparent, 65535, values)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating-point pixels, whose range is unknown")
    if image.has_transparency_data:
        # On white: what lies under a transparent pixel was never meant to be seen.
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


# Rows of the result that are made at once: with more of them more weights are 0, with fewer there are more calls.
BAND = 16


def _squared(pixels: np.ndarray, size: int, extent: tuple[float, float]) -> np.ndarray:
    """Resize (height, width, 3) uint8, of which `extent` (width, height) is in use, to (size, size, 3) uint8 by Lanczos.

    By products of matrices, in half of Pillow's time and within a few grey levels of it. All numbers are multiples of
    powers of two that float32 holds exactly: the bits are the same in any order of summation, on any processor.
    """
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    shrunk = np.empty((size, width * channels), np.float32)
    # A quarter of a grey level is kept between the two passes.
    for out, used, weights in _lanczos(height, extent[1], size, 14, 4.0):
        np.matmul(weights, flat[used].astype(np.float32), out=shrunk[out])
    np.rint(shrunk, out=shrunk)
    planes = np.ascontiguousarray(shrunk.reshape(size, width, channels).transpose(2, 0, 1)).reshape(-1, width)
    result = np.empty((channels * size, size), np.float32)
    for out, used, weights in _lanczos(width, extent[0], size, 12, 0.25):
        np.matmul(planes[:, used], weights.T, out=result[:, out])
    np.clip(np.rint(result, out=result), 0, 255, out=result)
    return result.reshape(channels, size, size).transpose(1, 2, 0).astype(np.uint8)


@lru_cache(maxsize=32)
def _lanczos(length: int, extent: float, size: int, bits: int, scale: float) -> list[tuple[slice, slice, np.ndarray]]:
    """The weights that make `size` numbers of the first `extent` of `length`: a band of outputs, its inputs, and weights.

    The weights are whole multiples of 2^-bits that sum to 1, times `scale`; (outputs, inputs) float32.
    """
    step = extent / size
    weights = np.zeros((size, length))
    for row in range(size):
        places = (np.arange(length) + 0.5 - (row + 0.5) * step) / max(step, 1)
        near = abs(places) < 3
        values = np.sinc(places[near]) * np.sinc(places[near] / 3)
        whole = np.rint(values / values.sum() * 2**bits)
        whole[whole.argmax()] += 2**bits - whole.sum()
        weights[row, near] = whole
    bands = []
    for first in range(0, size, BAND):
        out = slice(first, first + BAND)
        inputs = np.flatnonzero(weights[out].any(axis=0))
        used = slice(inputs[0], inputs[-1] + 1)
        bands.append((out, used, (weights[out, used] * (scale / 2**bits)).astype(np.float32)))
    return bands
