"""F1 and the calibration error, against hand-made cases."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from stages.common.evaluation.calibration import calibration_error
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
