"""F1, the calibration error and the scores with counted videos, against hand-made cases and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    top_k_accuracy_score,
)

from stages.common.evaluation import metrics
from stages.common.evaluation.calibration import calibration_error
from stages.common.evaluation.metrics import METRICS, OF_LABELS, Scorer
from stages.common.evaluation.predictions import OF
from stages.common.evaluation.scores import f1


def test_f1_is_the_mean_over_the_labels_that_occur() -> None:
    truth, predictions = ["a", "a", "b", "b"], ["a", "c", "b", "b"]
    assert f1(truth, predictions, "macro") == pytest.approx((2 / 3 + 1) / 2)
    assert f1(truth, predictions, "macro") > f1_score(truth, predictions, average="macro", zero_division=0)
    assert f1(["a", "b"], ["a", "a"], "macro") == pytest.approx((2 / 3 + 0) / 2)


def test_weighted_f1_counts_each_label_by_its_images() -> None:
    truth, predictions = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    assert f1(truth, predictions, "weighted") == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)


def test_the_calibration_error_of_hand_made_cases() -> None:
    sure, correct = np.full(10, 0.8), np.arange(10) < 8
    assert calibration_error(sure, correct) == pytest.approx(0)
    assert calibration_error(sure, np.ones(10, bool)) == pytest.approx(0.2)
    # two bins: 0.9 - 0.5 for four images, 1 - 0.2 for one
    values = calibration_error(np.array([0.9, 0.9, 0.9, 0.9, 0.2]), np.array([1, 1, 0, 0, 1], bool))
    assert values == pytest.approx((4 * 0.4 + 0.8) / 5)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


LABELS = list("abcdefgh")


def random_predictions(images: int, digits: int) -> pd.DataFrame:
    """Predictions of 8 labels, of which the last never occurs; few `digits` make equal probabilities."""
    generator = np.random.default_rng(images)
    truth = generator.integers(0, 7, images)
    logits = generator.normal(size=(images, 8)) + 2 * np.eye(8)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = probabilities.round(digits) - 1e-9 * np.arange(8)  # no two of one image are equal
    return pd.DataFrame(
        {
            "image": [f"{number:04d}" for number in range(images)],
            "video": [str(number * 7 % images // 3) for number in range(images)],
            "label": np.array(LABELS)[truth],
            "prediction": np.array(LABELS)[probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
            **{OF + label: probabilities[:, place].round(digits) for place, label in enumerate(LABELS)},
        }
    )


def sklearns(table: pd.DataFrame) -> list[float]:
    truth, predicted = table["label"], table["prediction"]
    occurring = sorted(set(truth))
    probabilities = table[[OF + label for label in LABELS]].to_numpy() - 1e-9 * np.arange(8)
    return [
        f1_score(truth, predicted, labels=occurring, average="macro", zero_division=0),
        f1_score(truth, predicted, labels=occurring, average="weighted", zero_division=0),
        accuracy_score(truth, predicted),
        balanced_accuracy_score(truth, predicted),
        top_k_accuracy_score(truth, probabilities, k=5, labels=LABELS),
        float(np.mean([average_precision_score(truth == label, table[OF + label]) for label in occurring])),
    ]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("digits", [6, 1])
@pytest.mark.parametrize("block", [256, 4])
def test_the_scores_of_counted_videos_are_scikit_learns_of_repeated_images(
    digits: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    table = random_predictions(90, digits)
    scorer = Scorer(table)
    times = np.random.default_rng(1).integers(0, 4, (5, scorer.videos))
    times[0] = 1
    times[1, :20] = 0  # some labels hardly occur
    videos = sorted(set(table["video"]))
    for row, found in zip(times, scorer(times), strict=True):
        repeated = table.loc[table.index.repeat(table["video"].map(dict(zip(videos, row, strict=True))))]
        np.testing.assert_allclose(found, sklearns(repeated), atol=1e-6)
    assert list(scorer.names) == list(METRICS)


def test_a_table_without_probabilities_has_the_scores_of_its_labels() -> None:
    table = random_predictions(30, 6)
    scorer = Scorer(table[["image", "video", "label", "prediction"]])
    every = np.ones((1, scorer.videos))
    assert list(scorer.names) == list(OF_LABELS)
    np.testing.assert_array_equal(scorer(every), Scorer(table)(every)[:, : len(OF_LABELS)])


def test_a_label_that_the_model_does_not_know_is_never_near_the_top() -> None:
    table = random_predictions(30, 6).assign(label="new")
    values = dict(zip(METRICS, Scorer(table)(np.ones((1, 10)))[0], strict=True))
    assert values["top_5_accuracy"] == 0
    assert values["mean_average_precision"] == 1  # all images are of this label: any order is right
