"""Scores of hand-made cases, and the figures of training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from stages import evaluate, report
from stages.common.evaluation.metrics import METRICS
from stages.common.evaluation.predictions import read_predictions
from stages.common.evaluation.summary import label_scores, summary
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv


def predictions(truth: list[str], predicted: list[str]) -> pd.DataFrame:
    images = [str(number) for number in range(len(truth))]
    return pd.DataFrame({"image": images, "video": images, "label": truth, "prediction": predicted, "probability": 0.5})


def test_scores_of_a_hand_made_case() -> None:
    truth = ["a"] * 6 + ["b"] * 3 + ["c"]
    predicted = ["a"] * 5 + ["b"] + ["b"] * 2 + ["a"] + ["d"]
    scores = summary(predictions(truth, predicted))
    a, b, c = 10 / 12, 4 / 6, 0.0
    assert scores["macro_f1"] == pytest.approx((a + b + c) / 3, abs=1e-6)
    assert scores["weighted_f1"] == pytest.approx((6 * a + 3 * b + 1 * c) / 10, abs=1e-6)
    assert scores["accuracy"] == 0.7
    assert scores["expected_calibration_error"] == pytest.approx(0.2)


def test_the_scores_of_labels_have_every_label_by_support() -> None:
    table = label_scores(pd.DataFrame({"label": ["a", "b", "b"], "prediction": ["b", "b", "b"]}), ["a", "b", "c"])
    assert list(table["label"]) == ["b", "a", "c"]
    assert list(table["support"]) == [2, 1, 0]
    assert table.loc[table["label"] == "b", ["precision", "recall", "f1"]].to_numpy().tolist() == [
        [pytest.approx(2 / 3, abs=1e-6), 1.0, pytest.approx(0.8)]
    ]


def test_the_support_is_whole_numbers_where_no_prediction_is_correct() -> None:
    table = label_scores(pd.DataFrame({"label": ["a", "b", "b"], "prediction": ["b", "a", "a"]}), ["a", "b"])
    assert table.to_csv(index=False).splitlines()[1:] == ["b,0.0,0.0,0.0,2", "a,0.0,0.0,0.0,1"]


@pytest.mark.parametrize(
    ("truth", "predicted", "macro", "weighted"),
    [
        # a label in test that train does not have: it can't be found and counts as 0
        (["a", "a", "new"], ["a", "b", "a"], (0.5 + 0) / 2, (2 * 0.5 + 0) / 3),
        # a label that is never predicted counts as 0
        (["a", "a", "b"], ["a", "a", "a"], (0.8 + 0) / 2, (2 * 0.8 + 0) / 3),
        # a label that is predicted but does not occur has no score; the image's own label misses it
        (["a", "a"], ["a", "b"], 2 / 3, 2 / 3),
        (["a"], ["b"], 0.0, 0.0),
        (["a"], ["a"], 1.0, 1.0),
    ],
)
def test_scores_of_odd_cases_are_defined(truth: list[str], predicted: list[str], macro: float, weighted: float) -> None:
    scores = summary(predictions(truth, predicted))
    assert scores["macro_f1"] == pytest.approx(macro, abs=1e-6)
    assert scores["weighted_f1"] == pytest.approx(weighted, abs=1e-6)
    present = sorted(set(truth))
    for average, value in (("macro", macro), ("weighted", weighted)):
        theirs = f1_score(truth, predicted, labels=present, average=average, zero_division=0)
        assert value == pytest.approx(theirs)
    table = label_scores(pd.DataFrame({"label": truth, "prediction": predicted}), sorted({*truth, *predicted}))
    assert np.isfinite(table[["precision", "recall", "f1"]].to_numpy()).all()


@pytest.fixture
def audited(workspace: Path) -> None:
    """No near-copies."""
    write_csv(paths.NEAR_COPIES, pd.DataFrame(columns=["image_1", "part_1", "image_2", "part_2"]))


@pytest.mark.usefixtures("audited")
def test_evaluate_writes_what_follows_from_the_predictions(workspace: Path) -> None:
    path = paths.predictions("scratch")
    path.parent.mkdir(parents=True)
    path.write_text(
        "image,video,label,prediction,probability,a,NA\n"
        "1.jpg,1,a,a,0.7,0.7,0.3\n2.jpg,1,a,NA,0.6,0.4,0.6\n3.jpg,NA,NA,NA,0.9,0.1,0.9\n"
    )
    evaluate.main()
    read = read_predictions(path)
    assert list(read["label"]) == ["a", "a", "NA"]
    metrics = json.loads(paths.EVALUATION.read_text())
    assert list(metrics) == [
        "model",
        "test_images",
        "macro_f1",
        "weighted_f1",
        "accuracy",
        "balanced_accuracy",
        "top_5_accuracy",
        "mean_average_precision",
        "expected_calibration_error",
        *(f"{metric}_interval" for metric in METRICS),
        "test_images_with_near_copies",
        "macro_f1_without_near_copies",
    ]
    without = {"test_images_with_near_copies": 0, "macro_f1_without_near_copies": metrics["macro_f1"]}
    assert metrics == {"model": "scratch", "test_images": 3, **summary(read), **without}
    assert metrics["accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    table = pd.read_csv(paths.LABEL_SCORES, keep_default_na=False)
    assert list(table.columns) == ["label", "precision", "recall", "f1", "support"]
    assert list(table["label"]) == ["a", "NA"]
    assert pd.read_csv(paths.CONFUSION, keep_default_na=False).equals(read[["label", "prediction"]])


@pytest.mark.usefixtures("audited")
def test_a_label_may_have_the_name_of_a_column(workspace: Path) -> None:
    path = paths.predictions("scratch")
    path.parent.mkdir(parents=True)
    path.write_text('image,video,label,prediction,probability,label,"a, b"\n1.jpg,1,label,label,0.7,0.7,0.3\n')
    evaluate.main()
    assert list(pd.read_csv(paths.LABEL_SCORES)["label"]) == ["label", "a, b"]
    assert json.loads(paths.EVALUATION.read_text())["accuracy"] == 1


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b'image,video\n"never closed'])
def test_predictions_that_can_not_be_read_are_one_error_that_names_the_file(
    workspace: Path, content: bytes | None
) -> None:
    path = paths.predictions("scratch")
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"could not read {path}: .*; make it again with dvc repro"):
        evaluate.main()
    assert not paths.EVALUATION.exists()


def test_the_seconds_of_training_include_the_backbones_pass() -> None:
    train = {"seconds": 20.0, "epochs": 4, "images": 400, "parameters": 9, "device": "CPU"}
    validation = {"validation_macro_f1": 0.5, "best_epoch": 3}
    assert report.training(train, [{"seconds": 100.0}], validation) == {
        "seconds": 120.0,
        "seconds_per_epoch": 5.0,
        "epochs": 4,
        "images_per_second": 20.0,
        "parameters": 9,
        "device": "CPU",
        **validation,
    }
    assert report.training(train, [], validation)["seconds"] == 20.0
