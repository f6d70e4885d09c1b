"""A look at the data before training, as one HTML page that needs nothing else: labels by part, sizes, near-copies, examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.common.dataset.splits import PARTS, video_keys
from stages.common.report import gallery
from stages.common.report.template import render

TEMPLATE = Path(__file__).with_name("data.html")
MAX_PAIRS = 24
EXAMPLES = 4  # of a label, of as many videos


@dataclass(frozen=True)
class Data:
    """What the page shows. The dictionaries are the content of the stages' JSON files."""

    name: str  # of the folder
    target: str
    annotate: dict[str, Any]
    resize: dict[str, Any]
    audit: dict[str, Any]
    images: pd.DataFrame  # those in use: image, part, label, video
    pairs: pd.DataFrame  # of near-copies, those in two parts first
    sizes: np.ndarray  # width and height of the originals of `images`, (images, 2) int


def data_page(data: Data, read: gallery.Read) -> str:
    """One HTML page. The same bytes for the same arguments.

    Args:
        data: what it shows.
        read: returns the pixels of images by their names, (n, size, size, 3) uint8.
    """
    budget = gallery.Budget(read)
    pairs = gallery.pairs(data.pairs.head(MAX_PAIRS), budget)
    labels = _labels(data.images)
    return render(
        TEMPLATE,
        data=data,
        pairs_shown=pairs,
        parts=PARTS,
        labels=labels,
        sizes=_sizes(data.sizes),
        groups=_examples(data.images, [row["label"] for row in labels], budget),
        side=gallery.SIDE,
    )


def _labels(images: pd.DataFrame) -> list[dict[str, Any]]:
    """Images in each part, and videos, of each label; the most frequent label first."""
    counts = pd.crosstab(images["label"], images["part"]).reindex(columns=list(PARTS), fill_value=0)
    videos = video_keys(images["image"], images["video"]).groupby(images["label"]).nunique()
    table = counts.assign(images=counts.sum(axis=1), videos=videos).reset_index()
    table = table.sort_values(["images", "label"], ascending=[False, True])
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _sizes(sizes: np.ndarray) -> list[tuple[str, str]]:
    """The originals' sizes and shapes in words."""
    width, height = sizes.T
    pixels = width * height
    order = np.argsort(pixels, kind="stable")
    named = [(name, order[place]) for name, place in (("smallest", 0), ("median", len(order) // 2), ("largest", -1))]
    shapes = {"landscape": width > height, "portrait": width < height, "square": width == height}
    return [
        *((f"{name} original", f"{width[place]} x {height[place]} pixels") for name, place in named),
        *((f"{shape} originals", f"{chosen.sum():,} ({chosen.mean():.0%})") for shape, chosen in shapes.items()),
        ("most elongated", f"{np.maximum(width / height, height / width).max():.1f} to 1"),
    ]


def _examples(images: pd.DataFrame, labels: list[str], budget: gallery.Budget) -> list[dict[str, Any]]:
    """Some images of each label, each of another video, as far as there is room."""
    one_of_video = images[~video_keys(images["image"], images["video"]).duplicated()]
    by_label = dict(iter(one_of_video.groupby("label")))
    groups = []
    for label in labels:
        rows = by_label.get(label, images.head(0)).head(EXAMPLES)
        shown = [{"image": name, "data": budget.picture(name)} for name in rows["image"]]
        if budget.left < 0:
            break
        groups.append({"label": label, "pictures": shown})
    return groups
