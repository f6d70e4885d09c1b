"""Pictures of the pages, as many as there is room for."""

import base64
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

Read = Callable[[list[str]], np.ndarray]

SIDE = 160  # pixels of a picture
QUALITY = 80  # of its JPEG
SHOWN = 12  # labels that may be wrong
MAX_BYTES = 3_500_000  # of all pictures in base64; the page stays under 5 MB


class Budget:
    """Turns rows into pictures, and counts their bytes. A picture that is shown twice is made once."""

    def __init__(self, read: Read) -> None:
        self.left = MAX_BYTES
        self.pixels = functools.partial(_pixels, read)
        self._made = functools.lru_cache(maxsize=None)(lambda image: jpeg(self.pixels(image)))

    def picture(self, image: str) -> str:
        """A JPEG in base64."""
        return self._counted(self._made(image))

    def drawn(self, pixels: np.ndarray) -> str:
        """The same of other pixels, (height, width, 3) uint8."""
        return self._counted(jpeg(pixels))

    def _counted(self, data: str) -> str:
        self.left -= len(data)
        return data

    def gallery(self, rows: pd.DataFrame, limit: int) -> list[dict[str, Any]]:
        columns = ["image", "label", "prediction", "probability"]
        shown: list[dict[str, Any]] = [
            {**row, "data": self.picture(str(row["image"]))}  # type: ignore[dict-item]
            for row in rows[columns].head(limit).to_dict("records")
        ]
        return shown


def _pixels(read: Read, image: str) -> np.ndarray:
    """An image as the pages show it, (SIDE, SIDE, 3) uint8."""
    return np.asarray(Image.fromarray(read([image])[0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def jpeg(pixels: np.ndarray, quality: int = QUALITY) -> str:
    """A JPEG in base64, of (height, width, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def pairs(rows: pd.DataFrame, budget: Budget) -> list[dict[str, Any]]:
    """Pairs of near-copies with their pictures, as far as there is room: images, similarity and mirrored.

    Args:
        rows: with the columns image, label and part of both images (image_1, image_2, …), similarity and mirrored.
        budget: what it has left.
    """
    shown: list[dict[str, Any]] = []
    for row in rows.to_dict("records"):
        images = [{key: row[f"{key}_{one}"] for key in ("image", "label", "part")} for one in (1, 2)]
        for each in images:
            each["data"] = budget.picture(str(each["image"]))
        if budget.left < 0:
            break
        shown.append({"images": images, "similarity": row["similarity"], "mirrored": row["mirrored"]})
    return shown


def suspicious(rows: pd.DataFrame, budget: Budget, limit: int = SHOWN) -> list[dict[str, Any]]:
    """The first suspicious labels with their pictures.

    Args:
        rows: the table of `suspicious_labels`.
        budget: what it has left.
        limit: the most pictures.
    """
    shown = rows.rename(columns={"suggested": "prediction", "probability_of_suggested": "probability"})
    return budget.gallery(shown, limit)
