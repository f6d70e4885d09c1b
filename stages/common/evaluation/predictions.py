"""Tables of predictions: how infer and predict write them, and how everything else reads them."""

import csv
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from stages.common.runtime.files import reading

COLUMNS = ["image", "video", "label", "prediction", "probability"]


def prediction_table(images: pd.DataFrame, probabilities: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """The columns of `images`, then prediction, probability, and one column per label.

    Args:
        images: one row per image.
        probabilities: (images, labels) float.
        labels: names of the columns of `probabilities`.
    """
    table = images.reset_index(drop=True)
    table["prediction"] = np.array(labels)[probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1)
    return pd.concat([table, pd.DataFrame(probabilities, columns=labels)], axis=1).round(6)


def parse_predictions(file: Path | TextIO) -> pd.DataFrame:
    """The table that infer writes: `COLUMNS`, all str but the probability, and one column per label, float.

    Raises:
        ValueError: it is not such a table.
    """
    # Names may be NA, 1 or 007; a label with the name of a column comes after the columns.
    return pd.read_csv(file, keep_default_na=False, dtype=dict.fromkeys(COLUMNS[:-1], str))


def read_predictions(path: Path) -> pd.DataFrame:
    """`parse_predictions` of a file of the pipeline.

    Raises:
        UserError: it can't be read.
    """
    with reading(path):
        return parse_predictions(path)


def read_labels(path: Path) -> list[str]:
    """The labels that a table of predictions has columns for: all that the model knows.

    Raises:
        UserError: it can't be read.
    """
    # Not by pandas: it renames a label that has the name of a column.
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))[len(COLUMNS) :]


def occurring_labels(*tables: pd.DataFrame) -> list[str]:
    """The labels that are true or predicted for an image of any of the tables, sorted."""
    return sorted({label for table in tables for column in ("label", "prediction") for label in table[column]})
