"""The chosen model's predictions of the test part to scores, by label and over all."""

from typing import Any

import pandas as pd

from stages.common.audit.leak import read_pairs, test_images_copied
from stages.common.evaluation.label_issues import suspicious_labels
from stages.common.evaluation.metrics import DIGITS
from stages.common.evaluation.predictions import probabilities_of, read_predictions
from stages.common.evaluation.scores import f1
from stages.common.evaluation.summary import headline, label_scores, summary
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.files import write_csv, write_json
from stages.common.runtime.lock import lock


@lock("evaluate")
def main() -> None:
    model = parameters.load().model
    predictions = read_predictions(paths.predictions(model))
    labels, _ = probabilities_of(predictions)
    scores = {"model": model, "test_images": len(predictions), **summary(predictions), **_leak(predictions)}
    write_csv(paths.LABEL_SCORES, label_scores(predictions, labels))
    write_csv(paths.CONFUSION, predictions[["label", "prediction"]])
    write_csv(paths.SUSPICIOUS_LABELS, suspicious_labels(predictions).round(3))
    write_json(paths.EVALUATION, scores)
    print(f"evaluate: {model}: {headline(scores)} on {len(predictions)} test images, with 95 % intervals")


def _leak(predictions: pd.DataFrame) -> dict[str, Any]:
    """How much near-copies of training images raise the score: macro F1 without the test images that have one."""
    copied = predictions["image"].isin(test_images_copied(read_pairs(paths.NEAR_COPIES)))
    left = predictions[~copied]
    score = f1(left["label"].to_numpy(), left["prediction"].to_numpy(), "macro") if len(left) else None
    return {
        "test_images_with_near_copies": int(copied.sum()),
        "macro_f1_without_near_copies": None if score is None else round(score, DIGITS["macro_f1"]),
    }


if __name__ == "__main__":
    errors.run(main)
