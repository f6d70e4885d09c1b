"""The benchmark behind the defaults: its folds, rows and table; and the baseline that the defaults must beat on photographs."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ablation
from stages.common.runtime import parameters
from tests.conftest import ROOT


def photographs(seed: int) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    videos = generator.integers(0, 40, 200)
    names = [f"{number}.jpg" for number in range(200)]
    return pd.DataFrame(
        {"image": names, "video": pd.array(videos, "Int64"), "label": np.array(list("abcd"))[videos % 4]}
    )


@pytest.mark.parametrize("seed", range(3))
def test_each_image_is_scored_once_and_no_video_is_in_two_parts(seed: int) -> None:
    table = photographs(seed)
    splits = list(ablation.folds(table, "video", seed))
    for part in ("test", "validation"):
        names = [name for split in splits for name in split.loc[split["part"] == part, "image"]]
        assert sorted(names) == sorted(table["image"])
    for split in splits:
        assert set(split["part"]) == {"train", "validation", "test"}
        assert (split.groupby("video")["part"].nunique() == 1).all()
    leaking = next(ablation.folds(table, "image", seed))
    assert (leaking.groupby("video")["part"].nunique() > 1).any()
    again = list(ablation.folds(table, "video", seed))
    assert all(one.equals(other) for one, other in zip(splits, again, strict=True))


def test_an_image_without_a_video_is_a_group_of_its_own() -> None:
    table = photographs(0)
    table.loc[:19, "video"] = pd.NA
    assert sum((split["part"] == "test").sum() for split in ablation.folds(table, "video", 0)) == 200


def test_every_row_is_valid_and_the_default_changes_nothing() -> None:
    default = parameters.load(ROOT / "params.yaml").mobilenetv2
    for row in ablation.ROWS.values():
        ablation.section(row, default)
    assert ablation.section(ablation.ROWS[ablation.DEFAULT], default) == default
    assert ablation.rooted(ablation.ROWS[ablation.DEFAULT])
    assert not ablation.rooted(ablation.ROWS["dropout 0.2"])
    assert all(ablation.base_of(name) in ablation.ROWS for name in list(ablation.ROWS)[1:])


def test_a_line_of_the_table_follows_from_the_logits() -> None:
    good = ablation.Result(np.eye(2)[[0, 1, 0, 1]] * 50, np.array([0, 1, 0, 1]), 2.0)
    poor = ablation.Result(np.eye(2)[[0, 1, 1, 0]] * 50, np.array([0, 1, 0, 1]), 1.0)
    runs = ablation.FOLDS * ablation.REPEATS
    line = ablation.summary("l2 10", [good] * runs, [poor] * runs)
    assert (line["macro_f1"], line["accuracy"], line["change"], line["seconds"]) == (1.0, 1.0, 0.5, 2.0)
    assert line["calibration_error"] == pytest.approx(0)
    assert ablation.summary("poor", [poor] * runs, None)["calibration_error"] == pytest.approx(0.5)
    assert (
        f"| l2 10 | 1.000 (1.00-1.00) | +0.500 (+0.500 to +0.500) | {ablation.REFERENCE} | 1.000 | 0.000 | 2.0 |"
        in ablation.markdown([line])
    )


@pytest.mark.slow
def test_the_committed_defaults_beat_a_plain_logistic_regression(
    shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shared("keras"), tmp_path / "keras")
    (tmp_path / "keras").chmod(0o755)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    rows = [ablation.DEFAULT, "logistic regression on train"]
    command = [sys.executable, "-m", "benchmarks.ablation", str(shared("mpii/actions10")), "--seed", "3"]
    command += ["--out", str(tmp_path / "out.csv"), "--rows", *rows]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    default, baseline = pd.read_csv(tmp_path / "out.csv").to_dict("records")
    assert [default["row"], baseline["row"]] == rows
    assert all(f"| {line['row']} | {line['macro_f1']:.3f} (" in shown for line in (default, baseline))
    assert baseline["change_highest"] < -0.02
