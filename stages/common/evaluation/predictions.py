"""Tables of predictions: how infer and predict write them, and how everything else reads them."""

import csv
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from stages.common.runtime.files import reading

COLUMNS = ["image", "video", "label", "prediction", "probability"]
FOLD_COLUMNS = ["repeat", "fold"]
OF = "probability of "


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


def parse_predictions(file: TextIO) -> pd.DataFrame:
    """The table that infer or cross-validate writes.

    Returns:
        `COLUMNS`, all str but the probability; before them, for cross-validate, `FOLD_COLUMNS`, int; after them one column
        per label, float, with the name `OF` and the label: a label may have the name of another column.

    Raises:
        ValueError: it is not such a table.
    """
    names = next(csv.reader(file), [])
    start = len(FOLD_COLUMNS) if names[: len(FOLD_COLUMNS)] == FOLD_COLUMNS else 0
    end = start + len(COLUMNS)
    if names[start:end] != COLUMNS:
        raise ValueError(f"its columns are {', '.join(names[:end]) or 'none'}; expected {', '.join(COLUMNS)}")
    columns = names[:end] + [OF + label for label in names[end:]]
    # Names may be NA, 1 or 007.
    return pd.read_csv(
        file, names=columns, index_col=False, keep_default_na=False, dtype=dict.fromkeys(COLUMNS[:-1], str)
    )


def read_predictions(path: Path) -> pd.DataFrame:
    """`parse_predictions` of a file of the pipeline.

    Raises:
        UserError: it can't be read.
    """
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        return parse_predictions(file)


def probabilities_of(predictions: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """The labels that a table of predictions has columns for, all that the model knows, and their probabilities,
    (images, labels) float.
    """
    columns = [name for name in map(str, predictions) if name.startswith(OF)]
    return [name.removeprefix(OF) for name in columns], predictions[columns].to_numpy(float)


def occurring_labels(*tables: pd.DataFrame) -> list[str]:
    """The labels that are true or predicted for an image of any of the tables, sorted."""
    return sorted({label for table in tables for column in ("label", "prediction") for label in table[column]})
