"""The values of the metrics files, over all labels and by label."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from stages.common.evaluation import bootstrap
from stages.common.evaluation.bootstrap import Repeats
from stages.common.evaluation.calibration import calibration_error
from stages.common.evaluation.metrics import DIGITS, METRICS


def summary(repeats: Repeats) -> dict[str, Any]:
    """The scores of `METRICS`, the expected calibration error, and then the scores' 95 % intervals.

    Args:
        repeats: a table of predictions with probabilities, or several of the same images, of which it has the means.
    """
    scores = bootstrap.intervals(repeats)
    errors = [
        calibration_error(table["probability"].to_numpy(), table["label"].to_numpy() == table["prediction"].to_numpy())
        for table in bootstrap.tables_of(repeats)
    ]
    return {
        **{name: round(score.value, DIGITS[name]) for name, score in scores.items()},
        "expected_calibration_error": round(float(np.mean(errors)), 4),
        # Lists: dvc metrics omits them from its tables, which keeps those narrow.
        **{f"{name}_interval": [round(end, DIGITS[name]) for end in score[1:]] for name, score in scores.items()},
    }


def headline(scores: dict[str, Any]) -> str:
    """The first three scores of a summary with their intervals, as one line for people."""
    return ", ".join(
        "{} {:.3f} ({:.2f} to {:.2f})".format(METRICS[name], scores[name], *scores[f"{name}_interval"])
        for name in list(METRICS)[:3]
    )


def label_scores(predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each label, the most frequent first."""
    values = precision_recall_fscore_support(
        predictions["label"], predictions["prediction"], labels=labels, zero_division=0
    )
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "support"), values, strict=True))).round(6)
    table["support"] = table["support"].astype(int)  # float where no prediction is correct
    table.insert(0, "label", labels)
    return table.sort_values(["support", "label"], ascending=[False, True])
