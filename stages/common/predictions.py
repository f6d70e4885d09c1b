"""models/MODEL/predictions.csv, for the stages and commands that read what infer has written."""

from pathlib import Path
from typing import TextIO

import pandas as pd

PREDICTIONS = "models/{}/predictions.csv"
COLUMNS = ["image", "video", "label", "prediction", "probability"]


def read_predictions(file: Path | TextIO) -> pd.DataFrame:
    """The table: `COLUMNS`, all str but the probability, and one column a label, float."""
    # Names may be NA, 1 or 007; a label named as a column follows the columns proper.
    return pd.read_csv(file, keep_default_na=False, dtype=dict.fromkeys(COLUMNS[:-1], str))
