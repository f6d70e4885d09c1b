"""What a model's predictions of the test part tell a user of the page: how often it was right, and images to try."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import video_keys
from stages.common.evaluation.predictions import probabilities_of, read_predictions
from stages.common.report.gallery import Budget
from stages.common.runtime import paths

BINS = 5  # of probabilities
SHOWN = 12  # examples


class Bin(NamedTuple):
    """Test images whose predicted label had a probability above `low`, to `high`, and how many predictions were correct."""

    low: float
    high: float
    images: int
    correct: int

    def __str__(self) -> str:
        between = f"between {self.low:.1f} and {self.high:.1f}"
        if not self.images:
            return f"On the test part no prediction had a probability {between}."
        share = f"{100 * self.correct / self.images:.0f} % of the predictions with a probability {between} were correct"
        return f"On the test part {share} ({self.correct} of {self.images}): the mark in the first bar."


class Record:
    """The predictions of the test part by one model.

    Raises:
        UserError: they can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.table = read_predictions(path)
        self.correct = (self.table["label"] == self.table["prediction"]).to_numpy()
        self.labels, _ = probabilities_of(self.table)

    def bin(self, probability: float) -> Bin:
        """What became of the predictions that were about as probable as this one."""
        place = max(0, int(np.ceil(probability * BINS)) - 1)
        values = self.table["probability"].to_numpy()
        inside = (values > place / BINS) & (values <= (place + 1) / BINS)
        return Bin(place / BINS, (place + 1) / BINS, int(inside.sum()), int(self.correct[inside].sum()))


class Example(NamedTuple):
    """An image of the test part."""

    image: str
    label: str  # the true one
    data: str  # a small JPEG in base64


class Examples:
    """Some images of the test part, of as many labels as possible, no two of the same video.

    Raises:
        UserError: a chunk file is damaged.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.rows = Rows(paths.RESIZED, "pixels")
        # Chunks of another data set have other names.
        found = table[table["image"].isin(set(self.rows.places))]
        found = found[~video_keys(found["image"], found["video"]).duplicated()]
        # The first of each label, then the second of each, and so on.
        turn = found.groupby("label").cumcount()
        order = found.assign(turn=turn).sort_values(["turn", "label"]).head(SHOWN)
        budget = Budget(self.rows.read)
        names: list[dict[str, Any]] = order[["image", "label"]].to_dict("records")  # type: ignore[assignment]
        self.shown = [Example(**name, data=budget.picture(name["image"])) for name in names]

    def content(self, number: int) -> bytes:
        """An example as the models have seen it, as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.rows.read([self.shown[number].image])[0]).save(file, "PNG")
        return file.getvalue()
