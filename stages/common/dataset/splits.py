"""The table of the stage split, and what must not be divided between its parts."""

from collections.abc import Container

import numpy as np
import pandas as pd

from stages.common.runtime.errors import UserError
from stages.common.runtime.files import reading
from stages.common.runtime.paths import RESIZE_METRICS, SPLIT

PARTS = ("train", "validation", "test")
UNLABELLED = "unlabelled"
HELD_OUT = "held_out"  # has no label, and the data set puts it into validation or test: nothing reads it


def video_keys(images: pd.Series, videos: pd.Series) -> pd.Series:
    """What the images of one video have in common; an image without a video is a video of its own.

    Args:
        images: names, str.
        videos: numbers as str, empty where there is none.

    Returns:
        One key per image, str.
    """
    return videos.where(videos != "", "image " + images)


def read_split() -> pd.DataFrame:
    """The table that the stage split writes: image, part, label, video, all str.

    Raises:
        UserError: it can't be read.
    """
    with reading(SPLIT):
        return pd.read_csv(SPLIT, keep_default_na=False, dtype=str)


def labels_of(split: pd.DataFrame) -> list[str]:
    """The labels, sorted: a model's outputs are in this order."""
    return sorted(split.loc[is_labelled(split), "label"].unique())


def is_labelled(split: pd.DataFrame) -> pd.Series:
    """Whether each image is in one of `PARTS`, bool."""
    return split["part"].isin(PARTS)


def without_labels(split: pd.DataFrame) -> list[str]:
    """The images from which a model may learn without their labels, sorted.

    Those of train, and the unlabelled ones of which no image of the same video is in another part.
    """
    keys, train, unlabelled = (
        video_keys(split["image"], split["video"]),
        split["part"] == PARTS[0],
        split["part"] == UNLABELLED,
    )
    others = keys.isin(keys[~train & ~unlabelled])
    return sorted(split.loc[train | (unlabelled & ~others), "image"])


def images_of(split: pd.DataFrame, part: str, decoded: Container[str]) -> pd.DataFrame:
    """The rows of one part whose image is among the decoded ones.

    Raises:
        UserError: there is none.
    """
    chosen = split[(split["part"] == part) & np.array([image in decoded for image in split["image"]])]
    if chosen.empty:
        raise UserError(
            f"{SPLIT} has no {part} image that could be decoded; expected at least one: see {RESIZE_METRICS}"
        )
    return chosen.reset_index(drop=True)
