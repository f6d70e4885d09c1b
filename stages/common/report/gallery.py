"""The pictures of the page: the most confident mistakes and the least confident hits, over all labels and by label."""

import base64
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stages.common.dataset.splits import video_keys

Read = Callable[[list[str]], np.ndarray]

SIDE = 160  # pixels of a picture
QUALITY = 80  # of its JPEG
SHOWN = 12  # pictures in a gallery over all labels
SHOWN_OF_LABEL = 4
MAX_BYTES = 3_500_000  # of all pictures in base64; the page stays under 5 MB


class Budget:
    """Turns rows into pictures, and counts their bytes. A picture that is shown twice is made once."""

    def __init__(self, read: Read) -> None:
        self.left = MAX_BYTES
        self._picture = functools.lru_cache(maxsize=None)(functools.partial(_picture, read))

    def picture(self, image: str) -> str:
        """A JPEG in base64."""
        data = self._picture(image)
        self.left -= len(data)
        return data

    def gallery(self, rows: pd.DataFrame, limit: int) -> list[dict[str, Any]]:
        columns = ["image", "label", "prediction", "probability"]
        shown: list[dict[str, Any]] = [
            {**row, "data": self.picture(str(row["image"]))}  # type: ignore[dict-item]
            for row in rows[columns].head(limit).to_dict("records")
        ]
        return shown


def galleries(predictions: pd.DataFrame, labels: list[str], budget: Budget) -> dict[str, Any]:
    """As many pictures as there is room for: those over all labels first, then label by label.

    Args:
        predictions: a table with the columns image, video, label, prediction and probability.
        labels: those with images, in the order of the page.
        budget: what it has left.

    Returns:
        mistakes and hits, lists of pictures; groups, one per label with its own mistakes and hits; and omitted, the number
        of labels without a group.
    """
    order = predictions.sort_values(["probability", "image"], ascending=[False, True])
    hit = order["label"] == order["prediction"]
    # One frame of each video: the others look alike.
    videos = video_keys(order["image"], order["video"])
    mistakes, hits = (rows[~videos[rows.index].duplicated()] for rows in (order[~hit], order[hit].iloc[::-1]))
    shown: dict[str, Any] = {"mistakes": budget.gallery(mistakes, SHOWN), "hits": budget.gallery(hits, SHOWN)}
    groups = []
    for label in labels:
        same = order["label"] == label
        group = {
            "label": label,
            "images": int(same.sum()),
            "correct": int((same & hit).sum()),
            "mistakes": budget.gallery(mistakes[mistakes["label"] == label], SHOWN_OF_LABEL),
            "hits": budget.gallery(hits[hits["label"] == label], SHOWN_OF_LABEL),
        }
        if budget.left < 0:
            break
        groups.append(group)
    return {**shown, "groups": groups, "omitted": len(labels) - len(groups)}


def _picture(read: Read, image: str) -> str:
    picture = Image.fromarray(read([image])[0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
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
