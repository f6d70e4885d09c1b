"""Cross-validation: who predicts what, resuming, and the comparison of out-of-fold predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import cross_validate
from stages.common.evaluation.metrics import METRICS
from stages.common.evaluation.predictions import OF, parse_predictions
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from tests.conftest import extract_features, pretrained_section, set_parameters


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15)), min_size=12, max_size=80),
    st.integers(2, 6),
    st.integers(0, 99),
)
def test_every_image_is_in_one_fold_and_no_group_in_two(images: list[tuple[str, int]], count: int, seed: int) -> None:
    labels = pd.Series([label for label, _ in images])
    groups = pd.Series([str(group) for _, group in images])
    count = min(count, cross_validate.max_folds(labels, groups))
    if count < 2:
        return
    fold = cross_validate.folds(labels, groups, count, seed)
    assert set(fold) <= set(range(count))
    assert (pd.Series(fold).groupby(groups).nunique() == 1).all()
    assert (fold == cross_validate.folds(labels, groups, count, seed)).all()


def test_each_label_is_spread_over_the_folds() -> None:
    labels = pd.Series(["a"] * 100 + ["b"] * 20 + ["c"] * 5)
    groups = pd.Series(labels.index.astype(str))
    fold = cross_validate.folds(labels, groups, 5, 1)
    assert (pd.crosstab(labels, fold).to_numpy() == [[20] * 5, [4] * 5, [1] * 5]).all()
    assert (fold != cross_validate.folds(labels, groups, 5, 2)).any()


def test_the_parts_of_a_fold() -> None:
    images = pd.DataFrame({"image": [f"{n}.jpg" for n in range(90)], "label": ["a", "b", "c"] * 30, "part": "test"})
    groups = pd.Series([str(number // 3) for number in range(90)])
    fold = cross_validate.folds(images["label"], groups, 5, 1)
    table = cross_validate.part_of_fold(images, groups, fold, 2, share=0.2)
    assert (table["part"].eq("test") == (fold == 2)).all()
    assert (table["part"].groupby(groups).nunique() == 1).all()
    assert table["part"].value_counts().to_dict() == {"train": 57, "test": 18, "validation": 15}
    table = cross_validate.part_of_fold(images, groups, fold, 2, share=0)
    assert table["part"].value_counts().to_dict() == {"train": 72, "test": 18}


@pytest.fixture
def ready(coloured_split: pd.DataFrame) -> pd.DataFrame:
    """What the stages before have made, for the model backbone and three folds: 48 images, of which some share a video."""
    coloured_split["video"] = [str(number // 2) if number < 24 else "" for number in range(48)]
    coloured_split.to_csv(paths.SPLIT, index=False)
    section = pretrained_section(fine_tune_epochs=0)
    extract_features(section)
    values = {f"backbone.{key}": value for key, value in section.model_dump().items()}
    set_parameters(paths.PARAMETERS, values | {"model": "backbone", "cross_validation.folds": 3})
    return coloured_split


def run() -> tuple[pd.DataFrame, dict[str, Any]]:
    cross_validate.main()
    with paths.out_of_fold("backbone").open(encoding="utf-8", newline="") as file:
        return parse_predictions(file), json.loads(paths.CROSS_VALIDATION.read_text())


@pytest.mark.slow
def test_every_labelled_image_is_predicted_once_by_a_model_that_has_not_seen_its_video(
    ready: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[pd.DataFrame] = []
    original = cross_validate.train_and_predict

    def train_and_predict(train: Any, table: pd.DataFrame, *rest: Any) -> np.ndarray:
        seen.append(table)
        return original(train, table, *rest)

    monkeypatch.setattr(cross_validate, "train_and_predict", train_and_predict)
    set_parameters(paths.PARAMETERS, {"cross_validation.repeats": 2})
    table, scores = run()
    assert len(table) == 2 * len(ready)
    for repeat, rows in table.groupby("repeat"):
        assert list(rows["image"]) == list(ready["image"])
        assert list(rows["label"]) == list(ready["label"])
        for fold, predicted in rows.groupby("fold"):
            trained = seen[3 * (int(str(repeat)) - 1) + int(str(fold)) - 1]
            others = trained[trained["part"] != "test"]
            assert set(predicted["image"]) == set(trained.loc[trained["part"] == "test", "image"])
            assert not set(predicted["image"]) & set(others["image"])
            assert not set(predicted["video"]) & set(others["video"]) - {""}
    assert list(scores)[: 4 + len(METRICS)] == ["model", "images", "folds", "repeats", *METRICS]
    means = table.assign(hit=table["label"] == table["prediction"]).groupby("repeat")["hit"].mean()
    assert scores["accuracy"] == pytest.approx(means.mean(), abs=1e-6)
    assert scores["accuracy"] > 0.6  # three colours
    first, second = (rows["fold"].to_numpy() for _, rows in table.groupby("repeat"))
    assert (first != second).any()
    # By the mean of both repeats.
    means_of = table.groupby("image", sort=False)[[OF + label for label in "abc"]].mean()
    missed = (
        means_of.idxmax(axis=1).map(lambda name: str(name).removeprefix(OF))
        != table["label"].iloc[: len(ready)].to_numpy()
    )
    suspicious = pd.read_csv(paths.suspicious_labels("backbone"))
    assert set(suspicious["image"]) == set(means_of.index[missed])
    assert paths.SUSPICIOUS_PAGE.read_text(encoding="utf-8").count("<img") == len(suspicious)


@pytest.mark.slow
def test_a_run_that_was_stopped_resumes_with_the_next_fold_and_the_same_bytes(
    ready: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_parameters(paths.PARAMETERS, {"backbone.head": "softmax", "backbone.refit": False})
    run()
    outputs = (
        paths.out_of_fold("backbone"),
        paths.CROSS_VALIDATION,
        paths.suspicious_labels("backbone"),
        paths.SUSPICIOUS_PAGE,
    )
    expected = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    original = cross_validate.train_and_predict
    calls: list[str] = []

    def train_and_predict(train: Any, table: pd.DataFrame, values: Any, folder: Path, stage: str) -> np.ndarray:
        calls.append(stage)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(train, table, values, folder, stage)

    monkeypatch.setattr(cross_validate, "train_and_predict", train_and_predict)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not any(path.exists() for path in outputs)
    run()
    assert calls == [f"cross-validate {number}/3" for number in (1, 2, 2, 3)]
    assert "cross-validate: resuming: 1/3 folds done" in capsys.readouterr().out
    assert [path.read_bytes() for path in outputs] == expected
    assert not list(paths.out_of_fold("backbone").parent.glob(".*"))


@pytest.mark.slow
def test_the_test_part_can_be_held_out(ready: pd.DataFrame) -> None:
    set_parameters(paths.PARAMETERS, {"cross_validation.hold_out_test": True})
    table, scores = run()
    assert set(table["image"]) == set(ready.loc[ready["part"] != "test", "image"])
    assert scores["images"] == 36


@pytest.mark.slow
def test_labels_of_one_video_are_named(ready: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    ready.loc[0, "label"] = "rare"
    ready.to_csv(paths.SPLIT, index=False)
    table, _ = run()
    assert "warning: in one video only, so never predicted correctly: rare" in capsys.readouterr().out
    assert (table.loc[table["label"] == "rare", "prediction"] != "rare").all()


@pytest.mark.parametrize(
    ("images", "folds", "line"),
    [
        (
            48,
            50,
            r"cross_validation.folds is 50, .* only 36 videos, and at most 16 images of a label; set it to 16 or less",
        ),
        (1, 2, r"only 1 videos, and at most 1 images of a label; expected at least two of both"),
        (3, 2, r"at most 1 images of a label; expected at least two of both"),
    ],
)
def test_too_few_images_for_the_folds_are_one_line(ready: pd.DataFrame, images: int, folds: int, line: str) -> None:
    ready.iloc[:images].to_csv(paths.SPLIT, index=False)
    set_parameters(paths.PARAMETERS, {"cross_validation.folds": folds})
    with pytest.raises(UserError, match=line):
        cross_validate.main()


@pytest.mark.parametrize(
    ("labels", "share"), [("aab", 0.0), ("aabb", 0.5)], ids=["one label to learn", "nothing to validate"]
)
def test_a_fold_that_leaves_too_little_is_one_line(labels: str, share: float) -> None:
    images = pd.DataFrame({"image": [f"{n}.jpg" for n in range(len(labels))], "label": list(labels), "part": "train"})
    fold = np.arange(len(labels)) // 2
    with pytest.raises(UserError, match="fold 2 leaves too few images to learn two labels from"):
        cross_validate.part_of_fold(images, pd.Series(fold.astype(str)), fold, 1, share)


@pytest.mark.slow
def test_a_damaged_fold_is_predicted_again(
    ready: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        context.setattr(cross_validate, "summary", stop)  # all folds are predicted
        cross_validate.main()
    (first, *_) = sorted(paths.out_of_fold("backbone").parent.rglob("*.npz"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    run()
    shown = capsys.readouterr().out
    assert "cross-validate: discarded the damaged 0-0.npz" in shown
    assert "cross-validate: resuming: 2/3 folds done" in shown
