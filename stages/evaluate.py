"""The chosen model's predictions of the test part -> scores, by label and over all."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from stages.common import bootstrap, parameters, problem
from stages.common.calibration import calibration_error
from stages.common.files import lock, write_csv, write_json
from stages.common.predictions import COLUMNS, PREDICTIONS, read_predictions
from stages.common.problem import Problem
from stages.common.scores import f1

METRICS = Path("metrics/evaluation.json")
LABELS = Path("plots/labels.csv")
CONFUSION = Path("plots/confusion.csv")


def score(predictions: pd.DataFrame) -> dict[str, Any]:
    """Macro and weighted F1, accuracy, their 95 % intervals, calibration error and number of images.

    Args:
        predictions: a table with the columns image, video, label, prediction and probability.
    """
    truth, predicted = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
    intervals = bootstrap.intervals(predictions)
    return {
        "macro_f1": round(f1(truth, predicted, "macro"), 6),
        "weighted_f1": round(f1(truth, predicted, "weighted"), 6),
        "accuracy": round(float(accuracy_score(truth, predicted)), 6),
        "expected_calibration_error": round(
            calibration_error(predictions["probability"].to_numpy(), truth == predicted), 6
        ),
        "test_images": len(predictions),
        # Lists, which dvc metrics leaves out of its tables: few columns there.
        **{f"{name}_interval": [round(end, 6) for end in ends] for name, ends in intervals.items()},
    }


def report(predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each label, the most frequent first."""
    values = precision_recall_fscore_support(
        predictions["label"], predictions["prediction"], labels=labels, zero_division=0
    )
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "support"), values, strict=True))).round(6)
    table.insert(0, "label", labels)
    return table.sort_values(["support", "label"], ascending=[False, True])


@lock("evaluate")
def main() -> None:
    model = parameters.load().model
    path = Path(PREDICTIONS.format(model))
    if not path.is_file():
        raise Problem(f"{path}: no such predictions; make them with dvc repro")
    predictions = read_predictions(path)
    # Not from the table: a label may be named as a column is, and pandas renames the second one.
    with path.open(encoding="utf-8", newline="") as file:
        labels = next(csv.reader(file))[len(COLUMNS) :]
    scores = score(predictions)
    write_csv(LABELS, report(predictions, labels))
    write_csv(CONFUSION, predictions[["label", "prediction"]])
    write_json(METRICS, {"model": model, **scores})
    shown = ", ".join(
        "{} {:.3f} ({:.2f} to {:.2f})".format(text, scores[name], *scores[f"{name}_interval"])
        for name, text in bootstrap.METRICS.items()
    )
    print(f"evaluate: {model}: {shown} on {scores['test_images']} test images; in brackets 95 % intervals")


if __name__ == "__main__":
    problem.run(main)
