"""The split: no video in two parts, every label that can be in each part is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import split
from stages.common.annotations import matlab
from stages.common.dataset.splits import images_of, labels_of, read_split, video_keys
from stages.common.images import layout
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv
from stages.common.runtime.parameters import Split
from stages.common.splitting.assignment import assign
from tests.conftest import set_parameters

SECTION = Split(seed=1, group="video", labels_per_class="all", validation=0.15, test=0.15)


def table(rows: list[tuple[str, int | None]]) -> pd.DataFrame:
    """Annotations of (category, video) pairs; an empty category is unlabelled."""
    return pd.DataFrame(
        {
            "image": [f"{number}.jpg" for number in range(len(rows))],
            "category": [label for label, _ in rows],
            "activity": [label for label, _ in rows],
            "video": ["" if video is None else str(video) for _, video in rows],
            "people": 1,
            "labelled": [bool(label) for label, _ in rows],
            "part": "",
        }
    )


images = st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.one_of(st.none(), st.integers(0, 12)))
sections = st.builds(
    Split,
    seed=st.integers(0, 2**32 - 1),
    group=st.just("video"),
    labels_per_class=st.just("all"),
    validation=st.floats(0.01, 0.45),
    test=st.floats(0.01, 0.45),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(images, max_size=60), sections)
def test_no_video_in_two_parts_and_no_image_lost(rows: list[tuple[str, int | None]], section: Split) -> None:
    annotations = table(rows)
    try:
        result, few = split.split(annotations, "category", section)
    except UserError:
        return
    assert list(result["image"]) == list(annotations["image"])
    labelled = result[result["part"] != "unlabelled"]
    assert set(result.index) - set(labelled.index) == {number for number, (label, _) in enumerate(rows) if not label}
    assert (labelled[labelled["video"] != ""].groupby("video")["part"].nunique() == 1).all()
    parts = labelled.groupby("label")["part"].agg(set)
    for label, found in parts.items():
        assert found == ({"train"} if label in few else {"train", "validation", "test"})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), min_size=1, max_size=40), st.integers(0, 99))
def test_a_label_is_in_train_only_if_it_has_fewer_than_three_videos(videos: list[tuple[str, int]], seed: int) -> None:
    groups = [Counter({label: frames}) for label, frames in videos]
    _, few = assign(groups, (0.7, 0.15, 0.15), seed)
    counts = Counter(label for label, _ in videos)
    assert few == sorted(label for label in counts if counts[label] < 3)


def test_a_video_that_a_rare_label_keeps_in_train_makes_others_rare() -> None:
    # "b" has two videos, so both are in train; of the three of "a" only one is left then.
    groups = [Counter({"a": 1, "b": 1}), Counter({"a": 1, "b": 1}), Counter({"a": 1}), *[Counter({"c": 1})] * 3]
    parts, few = assign(groups, (0.7, 0.15, 0.15), 0)
    assert few == ["a", "b"]
    assert parts[:3] == [0, 0, 0]


def test_fractions_are_kept_for_each_label() -> None:
    rows: list[tuple[str, int | None]] = [
        (label, 1000 * number + video) for number, label in enumerate("abc") for video in range(60) for _ in range(3)
    ]
    result, few = split.split(table(rows), "category", SECTION)
    shares = pd.crosstab(result["label"], result["part"], normalize="index")
    assert not few
    np.testing.assert_allclose(shares["test"], 0.15, atol=0.02)
    np.testing.assert_allclose(shares["validation"], 0.15, atol=0.02)


def test_the_seed_decides_and_nothing_else() -> None:
    rows: list[tuple[str, int | None]] = [
        (label, 100 * number + video) for number, label in enumerate("abc") for video in range(9) for _ in range(4)
    ]
    first, second, other = (
        split.split(table(rows), "category", SECTION.model_copy(update={"seed": seed}))[0]["part"] for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_group_image_splits_videos() -> None:
    rows: list[tuple[str, int | None]] = [(label, number) for number, label in enumerate("ab") for _ in range(40)]
    result, _ = split.split(table(rows), "category", SECTION.model_copy(update={"group": "image"}))
    assert (result.groupby("video")["part"].nunique() == 3).all()


def test_counts_name_what_could_not_be_split() -> None:
    rows = [("a", video) for video in range(9)] + [("b", video) for video in range(20, 29)] + [("rare", 50), ("", None)]
    result, few = split.split(table(rows), "category", SECTION)
    assert few == ["rare"]
    counts = split.counts(result, few)
    assert counts["labels_in_train_alone"] == 1
    assert counts["unlabelled"] == 1
    assert counts["labels"] == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 1), ("a", 2)], r"one label only \('a'\).*; expected two or more: add images of other labels"),
        ([("", 1)], "no label at all"),
        ([], "no label at all"),
        ([("a", 1), ("b", 2), ("c", 3)], "3 images with 3 labelled images of 3 labels are too few"),
    ],
)
def test_too_little_to_split_is_one_error(rows: list[tuple[str, int | None]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split.split(table(rows), "category", SECTION)


def test_labels_that_look_like_numbers_stay_as_they_are(workspace: Path) -> None:
    rows: list[tuple[str, int | None]] = [
        (label, 10 * n + v) for n, label in enumerate(("007", "7", "NA")) for v in range(4)
    ]
    write_csv(paths.ANNOTATIONS, table([*rows, ("1", None)]))
    split.main()
    result = pd.read_csv(paths.SPLIT, dtype=str, keep_default_na=False)
    assert set(result["label"]) == {"007", "7", "NA", "1"}


def test_main_lists_images_whatever_the_split(workspace: Path, drawn: Path) -> None:
    write_csv(paths.ANNOTATIONS, matlab.read(layout.annotation_file(drawn)))
    split.main()
    listed, parts = paths.IMAGE_LIST.read_bytes(), paths.SPLIT.read_bytes()
    set_parameters(Path("params.yaml"), {"split.seed": 2, "target": "activity"})
    split.main()
    assert paths.IMAGE_LIST.read_bytes() == listed
    assert paths.SPLIT.read_bytes() != parts


BUDGETS = (1, 2, 5)


def test_a_budget_of_labels_is_spread_over_videos_and_part_of_a_larger_one() -> None:
    rows: list[tuple[str, int | None]] = [("a", video) for video in range(12) for _ in range(3)]
    rows += [("b", 20 + video) for video in range(12)] + [("", None)] * 4
    whole, _ = split.split(table(rows), "category", SECTION)
    kept = {}
    for budget in BUDGETS:
        result = split.with_budget(whole, budget, 1)
        train = result[result["part"] == "train"]
        assert train.groupby("label").size().to_dict() == {"a": budget, "b": budget}
        assert (train.groupby(["label", "video"]).size() == 1).all()
        # The others keep their part, or lose their label.
        others = result.drop(train.index)
        given = whole[whole["part"].isin(["validation", "test"])]
        pd.testing.assert_frame_equal(others[others["part"] != "unlabelled"], given)
        assert set(result.loc[result["part"] == "unlabelled", "label"]) == {""}
        kept[budget] = set(train["image"])
    assert kept[1] < kept[2] < kept[5] < set(whole.loc[whole["part"] == "train", "image"])
    pd.testing.assert_frame_equal(split.with_budget(whole, 1000, 1), whole)
    other = split.with_budget(whole, 5, 2)
    assert set(other.loc[other["part"] == "train", "image"]) != kept[5]


def test_images_without_labels_are_listed_and_a_budget_changes_no_list(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[tuple[str, int | None]] = [*[("a", None)] * 10, *[("b", None)] * 10, *[("", None)] * 3]
    annotations = table(rows)
    annotations["part"] = [*["train"] * 6, *["validation"] * 2, *["test"] * 2] * 2 + ["", "train", "test"]
    write_csv(paths.ANNOTATIONS, annotations)
    split.main()
    shown = capsys.readouterr().out
    assert "split: 12 train, 4 validation, 4 test, 2 unlabelled\n" in shown
    assert "split: 1 images without label are in a given validation or test part: not used" in shown
    assert list(read_split()["part"])[-3:] == ["unlabelled", "unlabelled", "held_out"]
    assert paths.UNLABELLED_LIST.read_text().split() == ["20.jpg", "21.jpg", "22.jpg"]
    train = [f"{number}.jpg" for number in (*range(6), *range(10, 16))]
    assert paths.PRETRAINING_LIST.read_text().split() == sorted([*train, "20.jpg", "21.jpg"])
    lists = [path.read_bytes() for path in (paths.IMAGE_LIST, paths.UNLABELLED_LIST, paths.PRETRAINING_LIST)]
    annotations.loc[[0, 5, 8], "video"] = "1"  # of which frames are in train and test
    write_csv(paths.ANNOTATIONS, annotations)
    set_parameters(Path("params.yaml"), {"split.labels_per_class": 2, "split.group": "image"})
    split.main()
    assert (
        "split: 4 train images keep their label, at most 2 of each: the others count as unlabelled"
        in capsys.readouterr().out
    )
    assert lists == [path.read_bytes() for path in (paths.IMAGE_LIST, paths.UNLABELLED_LIST, paths.PRETRAINING_LIST)]


def test_images_of_one_video_share_a_key_and_an_image_without_a_video_has_its_own() -> None:
    images, videos = pd.Series(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "7"]), pd.Series(["7", "7", "", "", "8"])
    keys = video_keys(images, videos)
    assert keys[0] == keys[1]
    assert len({*keys}) == 4
    # An image whose name is a video's number is no frame of that video.
    keys = video_keys(pd.Series(["7", "x.jpg"]), pd.Series(["", "7"]))
    assert keys[0] != keys[1]


def test_labels_and_images_of_a_part_are_those_of_the_table(workspace: Path, drawn: Path) -> None:
    write_csv(paths.ANNOTATIONS, matlab.read(layout.annotation_file(drawn)))
    split.main()
    table = read_split()
    labelled = table[table["part"] != "unlabelled"]
    assert labels_of(table) == sorted({*labelled["label"]})
    assert "" not in labels_of(table)
    test = table[table["part"] == "test"]
    decoded = {*table["image"]} - {test["image"].iloc[1]}
    found = images_of(table, "test", decoded)
    assert list(found["image"]) == [name for name in test["image"] if name in decoded]
    assert list(found.index) == list(range(len(test) - 1))
    with pytest.raises(UserError, match=r"data/split.csv has no test image that could be decoded"):
        images_of(table, "test", {*table["image"]} - {*test["image"]})


def test_a_split_that_can_not_be_read_is_one_error_that_names_the_file(workspace: Path) -> None:
    for text in (None, "", 'image,part\n"never closed'):
        if text is not None:
            paths.SPLIT.parent.mkdir(exist_ok=True)
            paths.SPLIT.write_text(text)
        with pytest.raises(UserError, match=r"could not read data/split.csv: .*; make it again with dvc repro"):
            read_split()
