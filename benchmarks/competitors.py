"""What the stage and `decode` are compared with: the notebooks with Pillow, img2dataset, tf.data, Pillow's other filters."""

import importlib
import io
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from stages.common.images import decoding
from stages.common.images.decoding import decode

SIZE = 224  # side of all results in pixels, except img2dataset's
BATCH = 64  # images a batch of tf.data, as many as a chunk of the stage
LANCZOS = Image.Resampling.LANCZOS


def whole(path: Path, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """The notebooks' way: the whole photograph decoded by Pillow, and resized to `shape` (width, height) by Lanczos."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(shape, LANCZOS))


# The same as a program of its own, as the notebooks have it; its argument is the folder of the photographs.
NOTEBOOK = f"""
import sys
from pathlib import Path
import numpy as np
from PIL import Image
paths = sorted(Path(sys.argv[1]).iterdir())
np.stack([np.asarray(Image.open(p).convert("RGB").resize(({SIZE}, {SIZE}), Image.Resampling.LANCZOS)) for p in paths])
"""


@lru_cache
def _resizer() -> Any:
    # Otherwise its import asks the network for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    cv2: Any = importlib.import_module("cv2")
    # In this process only. img2dataset has no option to skip the JPEG that it makes of the result.
    cv2.imencode = lambda kind, image, params: (True, image)
    return importlib.import_module("img2dataset.resizer").Resizer(SIZE, "keep_ratio_largest", False)


def img2dataset(path: Path) -> np.ndarray:
    """img2dataset's fastest way: the longer side has `SIZE` pixels, the shape is kept.

    Raises:
        RuntimeError: it can't decode the photograph.
    """
    content, width, height, _, _, error = _resizer()(io.BytesIO(path.read_bytes()))
    if error:
        raise RuntimeError(error)
    return np.frombuffer(content, np.uint8).reshape(height, width, 3)[..., ::-1]


@lru_cache
def _dataset(paths: tuple[Path, ...], method: str) -> Any:
    tf: Any = importlib.import_module("tensorflow")

    def decoded(content: Any) -> Any:
        scale = tf.reduce_min(tf.io.extract_jpeg_shape(content)[:2]) // round(SIZE * decoding.MIN_REDUCED)
        return tf.switch_case(
            tf.searchsorted([2, 4, 8], [scale], side="right")[0],
            [
                partial(tf.io.decode_jpeg, content, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")
                for ratio in (1, 2, 4, 8)
            ],
        )

    def resized(path: Any) -> Any:
        image = tf.image.resize(decoded(tf.io.read_file(path)), (SIZE, SIZE), method, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    return files.map(resized, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def tf_data(paths: tuple[Path, ...], method: str) -> int:
    """Resize by tf.data, with the filter `method`, and throw the pixels away. Returns the number of images."""
    return sum(len(batch) for batch in _dataset(paths, method))


def tf_data_pixels(paths: tuple[Path, ...], method: str) -> np.ndarray:
    """The pixels that `tf_data` makes, (images, SIZE, SIZE, 3) uint8."""
    return np.concatenate(list(_dataset(paths, method).as_numpy_iterator()))


def floor(path: Path) -> None:
    """Decode by libjpeg-turbo at scale 1/8 only: a JPEG can hardly be decoded in less time."""
    with Image.open(path) as image:
        image.draft(None, (image.width // 8, image.height // 8))
        image.load()


def pillow(resample: Image.Resampling, gap: float | None, path: Path) -> np.ndarray:
    """One of Pillow's filters, on what libjpeg-turbo has reduced as much as for `decode`.

    Args:
        resample: the filter.
        gap: Pillow's `reducing_gap`.
        path: of a JPEG.
    """
    with Image.open(path) as image:
        least = round(SIZE * decoding.MIN_REDUCED)
        drafted = image.draft("RGB", (least, least))
        box = drafted[1] if drafted else None
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), resample, box, gap))


def _less_reduced(file: Path) -> np.ndarray:
    """`decode` with a constant of 1: libjpeg-turbo reduces more."""
    with patch.object(decoding, "MIN_REDUCED", 1.0):
        return decode(file, SIZE)


# `decode`, and what would be faster, or was.
SETTINGS: dict[str, Callable[[Path], np.ndarray]] = {
    "decode": partial(decode, size=SIZE),
    "MIN_REDUCED 1.0": _less_reduced,
    "Pillow's Lanczos": partial(pillow, LANCZOS, None),
    "Pillow's Lanczos, first reduced by whole numbers": partial(pillow, LANCZOS, 1.0),
    "Pillow's bilinear": partial(pillow, Image.Resampling.BILINEAR, None),
    "Pillow's box": partial(pillow, Image.Resampling.BOX, None),
}
