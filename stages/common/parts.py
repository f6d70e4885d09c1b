"""data/split.csv, for the stages that train and infer."""

from collections.abc import Container
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.problem import Problem

SPLIT = Path("data/split.csv")


def read_split() -> pd.DataFrame:
    """The table that the stage split writes: image, part, label, video, all str."""
    return pd.read_csv(SPLIT, keep_default_na=False, dtype=str)


def labels_of(split: pd.DataFrame) -> list[str]:
    """The labels, sorted: a model's outputs are in this order."""
    return sorted(split.loc[split["part"] != "unlabelled", "label"].unique())


def choose(split: pd.DataFrame, part: str, decoded: Container[str]) -> pd.DataFrame:
    """The rows of one part whose image is among those that could be decoded.

    Raises:
        Problem: there is none.
    """
    chosen = split[(split["part"] == part) & np.array([image in decoded for image in split["image"]])]
    if chosen.empty:
        raise Problem(
            f"{SPLIT} has no {part} image that could be decoded; expected at least one: see metrics/chunked-resize.json"
        )
    return chosen.reset_index(drop=True)
