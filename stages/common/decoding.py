"""One way from an image file to pixels, for the pipeline and for predict."""

import errno
import stat
import warnings
from pathlib import Path

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
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

# By vector instructions, in a seventh of Pillow's time. In whole numbers, so the same bits with any of them.
LANCZOS = ResizeAlg.convolution(FilterType.lanczos3)

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
    three times as fast.

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
                box = None
                if (turn := UPRIGHT.get(_orientation(image))) is None:
                    drafted = image.draft(None, (round(size * LEAST_REDUCED), round(size * LEAST_REDUCED)))
                    box = drafted[1] if drafted else None
                else:
                    image = image.transpose(turn)
                return _squared(_rgb(image), box or (0, 0, *image.size), size)
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


def _squared(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Resize the part `box` (left, upper, right, lower) of an RGB image to (size, size, 3) uint8."""
    left, upper, right, lower = box
    result = Image.new("RGB", (size, size))
    part = CropBox(left, upper, right - left, lower - upper)
    Resizer().resize_pil(image, result, ResizeOptions(LANCZOS, crop_box=part))
    return np.asarray(result)
