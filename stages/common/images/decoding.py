"""One way from an image file to pixels, for the pipeline and for predictions."""

import errno
import stat
import warnings
from pathlib import Path

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

# The formats of photographs. Pillow's other decoders would only add to what an attacker can reach.
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)

# Pixels of a decoded image: Pillow's own limit, above which an image counts as a decompression bomb.
MAX_PIXELS = 89_478_485
# Pixels of a JPEG before libjpeg reduces it. The largest cameras have 200 million.
MAX_JPEG_PIXELS = 300_000_000
# Pillow checks before the scale is known; `decode` checks after.
Image.MAX_IMAGE_PIXELS = None

# libjpeg may reduce an image to no less than this multiple of the target size. At 1.0 the PSNR of the worst images, which
# have 480 lines, falls to 39 dB.
MIN_REDUCED = 1.3

# SIMD code, in a seventh of Pillow's time. In whole numbers, so every instruction set gives the same bits.
LANCZOS = ResizeAlg.convolution(FilterType.lanczos3)

# Errors of the system, which may be gone at the next try.
TEMPORARY = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}

# The transposition that turns an image upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Orientations that exchange width and height.
TURNED = (5, 6, 7, 8)


class DecodeError(Exception):
    """An image that can't be decoded, with the reason."""


def decode(path: Path, size: int) -> np.ndarray:
    """Decode an image upright, as 8-bit RGB, resized to a square by Lanczos.

    JPEGs are decoded at a reduced scale of libjpeg that is still larger than `size`: PSNR to a full decode is 44 dB or more.

    Args:
        path: a file in one of `FORMATS`, whatever its name.
        size: side of the result in pixels.

    Returns:
        (size, size, 3) uint8.

    Raises:
        DecodeError: not a file, not an image, broken, of too many pixels, or of pixels whose range is unknown.
        OSError, MemoryError: the system is at fault, not the image.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DecodeError("not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd tags, which do no harm
            with Image.open(path, formats=FORMATS) as file:
                draft = None
                if isinstance(file, JpegImagePlugin.JpegImageFile):
                    _check_size(file, MAX_JPEG_PIXELS)
                    draft = file.draft(None, (round(size * MIN_REDUCED), round(size * MIN_REDUCED)))
                _check_size(file, MAX_PIXELS)
                file.load()  # Pillow turns a TIFF upright while it loads it, and removes the tag
                square = _to_square(_to_rgb(file), draft[1] if draft else (0, 0, *file.size), size)
                turn = UPRIGHT.get(_orientation(file))
                return np.asarray(square if turn is None else square.transpose(turn))
    except (DecodeError, MemoryError):
        raise
    except OSError as error:
        if error.errno in TEMPORARY:
            error.filename = str(path)
            raise
        raise DecodeError(error.strerror or str(error).replace(f" {str(path)!r}", "")) from error
    except Exception as error:  # decoders raise any type for a broken file
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def dimensions(path: Path) -> tuple[int, int]:
    """Width and height of an image in pixels, upright, from its header alone.

    Raises:
        OSError: it can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            turned = _orientation(file) in TURNED and file.format != "TIFF"  # of which Pillow gives the upright size
            return (height, width) if turned else (width, height)


def _check_size(image: Image.Image, limit: int) -> None:
    if image.width * image.height > limit:
        raise DecodeError(f"{image.width}x{image.height} pixels; expected at most {limit:,}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken tag is no reason to lose a whole photograph
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips 16-bit values at 255.
        values = np.asarray(image).astype(np.int64)
        # PPM's are scaled to 16 bits. TIFF's say nothing of their range: 200 may be bright, or nearly black.
        smallest = 256 if image.mode == "I" and image.format == "TIFF" else 0
        if not (values.min() >= 0 and smallest <= values.max() <= 65535):
            raise DecodeError("32-bit pixels, whose range is unknown")
        if isinstance(transparent := image.info.get("transparency"), int):
            values = np.where(values == transparent, 65535, values)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DecodeError("floating-point pixels, whose range is unknown")
    if image.has_transparency_data:
        # On white: the colour of a transparent pixel was never meant to be seen.
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _to_square(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """Resize the part `box` (left, upper, right, lower) of an RGB image to a square."""
    left, upper, right, lower = box
    result = Image.new("RGB", (size, size))
    part = CropBox(left, upper, right - left, lower - upper)
    Resizer().resize_pil(image, result, ResizeOptions(LANCZOS, crop_box=part))
    return result
