"""The chosen model's predictions of the test part to scores, by label and over all."""

from typing import Any

import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from stages.common.evaluation import bootstrap
from stages.common.evaluation.calibration import calibration_error
from stages.common.evaluation.predictions import read_labels, read_predictions
from stages.common.evaluation.scores import f1
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.files import write_csv, write_json
from stages.common.runtime.lock import lock


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
        # Probabilities differ by about 1e-6 between processors; the scores above depend on the predicted labels alone.
        "expected_calibration_error": round(
            calibration_error(predictions["probability"].to_numpy(), truth == predicted), 4
        ),
        "test_images": len(predictions),
        # Lists: dvc metrics omits them from its tables, which keeps those narrow.
        **{f"{name}_interval": [round(end, 6) for end in ends] for name, ends in intervals.items()},
    }


def label_scores(predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each label, the most frequent first."""
    values = precision_recall_fscore_support(
        predictions["label"], predictions["prediction"], labels=labels, zero_division=0
    )
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "support"), values, strict=True))).round(6)
    table["support"] = table["support"].astype(int)  # float where no prediction is correct
    table.insert(0, "label", labels)
    return table.sort_values(["support", "label"], ascending=[False, True])


@lock("evaluate")
def main() -> None:
    model = parameters.load().model
    path = paths.predictions(model)
    predictions = read_predictions(path)
    scores = score(predictions)
    write_csv(paths.LABEL_SCORES, label_scores(predictions, read_labels(path)))
    write_csv(paths.CONFUSION, predictions[["label", "prediction"]])
    write_json(paths.EVALUATION, {"model": model, **scores})
    shown = ", ".join(
        "{} {:.3f} ({:.2f} to {:.2f})".format(text, scores[name], *scores[f"{name}_interval"])
        for name, text in bootstrap.METRICS.items()
    )
    print(f"evaluate: {model}: {shown} on {scores['test_images']} test images, with 95 % intervals")


if __name__ == "__main__":
    errors.run(main)
