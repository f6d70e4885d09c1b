"""The layouts of data sets: found out, told in one line, and all ending in the same table."""

import os
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from stages import annotate, split
from stages.common.annotations import groups
from stages.common.annotations import table as labels_table
from stages.common.images import layout
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import read_json
from tests.conftest import set_parameters


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    return folder / "labels.csv"


def rows(table: pd.DataFrame, *columns: str) -> list[tuple[object, ...]]:
    assert list(table.columns) == list(layout.COLUMNS)
    return [tuple(row) for row in table[list(columns)].to_numpy().tolist()]


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    touch(tmp_path, "rugby/1.jpg", "rugby/day 2/2.JPG", "table tennis/3.png", "unlabelled/4.webp")
    found = annotate.read(tmp_path)
    assert found.layout == ("a folder for each label; folders below are no labels, as rugby/1.jpg is directly in one")
    assert rows(found.table, "image", "category", "activity", "labelled") == [
        ("rugby/1.jpg", "rugby", "rugby", True),
        ("rugby/day 2/2.JPG", "rugby", "rugby", True),
        ("table tennis/3.png", "table tennis", "table tennis", True),
        ("unlabelled/4.webp", "", "", False),
    ]
    assert layout.images_folder(tmp_path) == tmp_path


def test_two_levels_of_folders_are_category_and_activity(tmp_path: Path) -> None:
    touch(tmp_path, "sports/rugby/1.jpg", "sports/ski/a/2.jpg", "music/drums/3.jpg")
    assert rows(annotate.read(tmp_path).table, "image", "category", "activity") == [
        ("music/drums/3.jpg", "music", "drums"),
        ("sports/rugby/1.jpg", "sports", "rugby"),
        ("sports/ski/a/2.jpg", "sports", "ski"),
    ]


def test_folders_of_parts_give_the_parts(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", "Test/b/4.jpg", "train/unlabelled/5.jpg")
    found = annotate.read(tmp_path)
    assert "given parts" in found.layout
    assert {(image, label, part) for image, label, part in rows(found.table, "image", "category", "part")} == {
        ("train/a/1.jpg", "a", "train"),
        ("train/b/2.jpg", "b", "train"),
        ("valid/a/3.jpg", "a", "validation"),
        ("Test/b/4.jpg", "b", "test"),
        ("train/unlabelled/5.jpg", "", "train"),
    }


def test_a_label_may_be_called_train_but_parts_beside_labels_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "car/2.jpg")
    assert set(annotate.read(tmp_path).table["category"]) == {"train", "car"}
    touch(tmp_path, "test/a/1.jpg")
    with pytest.raises(UserError, match=r"folders of parts \(test, train\) beside 'car'"):
        annotate.read(tmp_path)


def test_what_is_no_image_is_skipped_and_counted(tmp_path: Path) -> None:
    touch(
        tmp_path, "a/1.jpg", "b/2.jpg", "README.md", "a/Thumbs.db", "a/.DS_Store", "a/._1.jpg", "stray.jpg", "b/x.heic"
    )
    touch(tmp_path, ".git/a/3.jpg", "__MACOSX/a/3.jpg", "b/x.txt")
    found = annotate.read(tmp_path)
    assert list(found.table["image"]) == ["a/1.jpg", "b/2.jpg"]
    expected = {".md": 1, ".db": 1, "hidden": 2, ".heic": 1, ".txt": 1, "in no label's folder": 1}
    assert found.skipped == Counter(expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no image in a label's folder; expected a folder of photographs for each label, or labels.csv, or MPII's"),
        (["1.jpg", "2.jpg"], "no image in a label's folder"),
        (["a/1.jpg", " /2.jpg"], "the folder of  /2.jpg has a blank name"),
        (["val/a/1.jpg", "test/b/2.jpg"], "has the parts test, val and no folder train"),
        (["Dog/1.jpg", "dog/2.jpg"], r"the labels 'Dog' and 'dog' differ in spelling only"),
        (["dog/1.jpg", "dog /2.jpg"], r"the labels 'dog' and 'dog ' differ in spelling only"),
        (["caf\u00e9/1.jpg", "cafe\u0301/2.jpg"], "differ in spelling only"),
        (["train/dog/1.jpg", "test/Dog/2.jpg"], "differ in spelling only"),
        (["dog/a\n.jpg", "cat/1.jpg"], "has control characters or is not UTF-8: rename it"),
        (["dog\udcff/1.jpg", "cat/1.jpg"], "has control characters or is not UTF-8: rename it"),
    ],
)
def test_folders_that_can_not_be_read_are_one_error(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        annotate.read(touch(tmp_path, *names))


def test_a_linked_folder_is_refused_and_a_linked_image_is_not(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg")
    touch(tmp_path / "data", "a/1.jpg", "b/2.jpg")
    (tmp_path / "data/a/linked.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    assert len(annotate.read(tmp_path / "data").table) == 3
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="data/c is a link to a folder"):
        annotate.read(tmp_path / "data")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table(tmp_path: Path, separator: str, encoding: str) -> None:
    lines = ["Image,label,group,part", "x/1.jpg,d\u00e9j\u00e0 vu,p1,train", '"2.jpg",b,,val', "3.jpg,,p2,"]
    csv(tmp_path, "\r\n".join(lines).replace(",", separator), encoding)
    found = annotate.read(tmp_path)
    assert found.layout == "a table, labels.csv"
    assert rows(found.table, "image", "category", "activity", "video", "labelled", "part") == [
        ("x/1.jpg", "d\u00e9j\u00e0 vu", "d\u00e9j\u00e0 vu", "p1", True, "train"),
        ("2.jpg", "b", "b", "", True, "validation"),
        ("3.jpg", "", "", "p2", False, ""),
    ]


def test_a_table_with_category_and_activity_under_another_name(tmp_path: Path) -> None:
    csv(tmp_path, 'image,category,activity\n1.jpg,sports,"tennis, hitting balls"\n').rename(tmp_path / "mine.csv")
    touch(tmp_path, "notes.csv")  # has other columns
    assert rows(annotate.read(tmp_path).table, "category", "activity") == [("sports", "tennis, hitting balls")]
    csv(tmp_path, "image,label\n").rename(tmp_path / "other.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"several tables \(mine.csv, other.csv\); rename the one to use to labels.csv"):
        annotate.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is empty; expected the names of columns"),
        ("\nimage,label\n1.jpg,a\n", "the first line is empty"),
        ("image,label\n", "no row below the header"),
        ("file,label\n1.jpg,a\n", "the columns are file, label; expected image, label"),
        (
            "image,label,category\n1.jpg,a,b\n",
            "the columns are image, label, category; expected .*, not both label and category",
        ),
        ("image,label,label\n1.jpg,a,b\n", "expected each name once"),
        ("image,label\n1.jpg,a,b\n", "line 2 has 3 cells; expected 2: image, label"),
        ('image,label\n1.jpg,"a\n', "save it again as CSV"),
        ("image,label\n../1.jpg,a\n", r"the image of line 2 is '\.\./1.jpg'; expected a path below"),
        ("image,label\n/etc/1.jpg,a\n", "the image of line 2 is '/etc/1.jpg'"),
        ("image,label\n,a\n", "the image of line 2 is ''"),
        ("image,label\n1.jpg,a\n2.jpg,A\n", "the labels 'A' and 'a' differ in spelling only"),
        ("image,label\n1.jpg,a\n\n1.jpg,b\n", "lines 2 and 4 say different things of image 1.jpg"),
        (
            "image,label,part\n1.jpg,a,dev\n",
            "the part of line 2 is 'dev'; expected train, training, validation, val, valid, test, testing",
        ),
        ("image,label,part\n1.jpg,a,train\n2.jpg,b,\n", "line 3 has a label and no part"),
        ("image,label\n1.jpg,a\x07\n", "column label has 'a\\\\x07'; expected text without control characters"),
    ],
)
def test_a_table_that_can_not_be_read_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    csv(tmp_path, text)
    with pytest.raises(UserError, match=message) as raised:
        annotate.read(tmp_path)
    assert str(tmp_path / "labels.csv") in str(raised.value)


def test_a_table_in_another_encoding_is_one_error(tmp_path: Path) -> None:
    csv(tmp_path, "image,label\n1.jpg,d\u00e9j\u00e0 vu\n", "latin-1")
    with pytest.raises(UserError, match="labels.csv: not UTF-8 .*; save it again as CSV in UTF-8"):
        annotate.read(tmp_path)


def test_excels_forms_of_a_table_are_read(tmp_path: Path) -> None:
    csv(tmp_path, "sep=;\r\nimage;label;;\r\n1.jpg;a;;\r\n;;;\r\n2.jpg;b;;\r\n").rename(tmp_path / "LABELS.CSV")
    assert rows(annotate.read(tmp_path).table, "image", "category") == [("1.jpg", "a"), ("2.jpg", "b")]


def test_a_stray_table_beside_folders_of_labels_is_one_error(tmp_path: Path) -> None:
    touch(tmp_path, "rugby/1.jpg", "ski/2.jpg")
    csv(tmp_path, "image,label\nrugby/1.jpg,a\n").rename(tmp_path / "notes.csv")
    with pytest.raises(UserError, match=r"two layouts: notes.csv, and images in folders \(rugby, ski\); rename"):
        annotate.read(tmp_path)
    (tmp_path / "notes.csv").rename(tmp_path / "labels.csv")
    assert annotate.read(tmp_path).skipped == {"images not in labels.csv": 1}


def test_two_layouts_at_once_are_one_error(tmp_path: Path) -> None:
    csv(tmp_path, "image,label\n1.jpg,a\n")
    touch(tmp_path, f"deep/{paths.MPII_ANNOTATIONS}")
    with pytest.raises(UserError, match=f"two layouts: labels.csv and MPII's {paths.MPII_ANNOTATIONS}; remove one"):
        annotate.read(tmp_path)


def run(data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    set_parameters(Path("params.yaml"), {"data": str(data)})
    annotate.main()
    split.main()
    return capsys.readouterr().out


def test_missing_and_repeated_rows_are_counted(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{label}{number}.jpg" for label in "ab" for number in range(4)]
    text = "image,label\n" + "".join(f"{name},{name[0]}\n" for name in [*names, "a0.jpg", "absent.jpg"])
    csv(touch(workspace / "mine", *names, "extra/1.jpg", "notes.txt"), text)
    shown = run(workspace / "mine", capsys)
    assert "mine: a table, labels.csv" in shown
    assert "1 listed images are missing: skipped" in shown
    assert "skipped 1 files: 1 images not in labels.csv" in shown
    assert "no labelled image has a video or group" in shown
    metrics = read_json(paths.ANNOTATE_METRICS)
    assert (metrics["images"], metrics["missing_images"], metrics["repeated_images"]) == (8, 1, 1)


@pytest.mark.parametrize("target", ["category", "activity"])
def test_given_parts_win_and_what_is_not_given_is_drawn_from_train(
    workspace: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    set_parameters(Path("params.yaml"), {"target": target})
    train = [f"train/{label}/{number}.jpg" for label in "ab" for number in range(10)]
    test = [f"test/{label}/{number}.jpg" for label in "ab" for number in range(10, 14)]
    shown = run(touch(workspace / "mine", *train, *test), capsys)
    assert "split: the data gives train, test; validation drawn from train" in shown
    table = pd.read_csv(paths.SPLIT)
    assert set(table.loc[table["part"] == "test", "image"]) == set(test)
    assert set(table.loc[table["part"] != "test", "image"]) == set(train)
    assert set(table.loc[table["part"] == "validation", "label"]) == {"a", "b"}
    assert (table["part"] == "train").sum() >= 14
    touch(workspace / "mine", *(f"val/{label}/20.jpg" for label in "ab"))
    shown = run(workspace / "mine", capsys)
    assert "the data gives train, validation, test; the section split of params.yaml is not used" in shown
    assert read_json(paths.SPLIT_METRICS)["validation"] == 2


def test_a_group_in_two_given_parts_and_a_label_without_train_images_are_one_error(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["1.jpg,a,p1,train", "2.jpg,b,p2,train", "3.jpg,a,p3,test", "4.jpg,b,p2,test"]
    names = [line.split(",")[0] for line in lines]
    csv(touch(workspace / "mine", *names), "\n".join(["image,label,group,part", *lines]))
    with pytest.raises(UserError, match="data gives two parts, train and test, to the images of one group, 'p2'"):
        run(workspace / "mine", capsys)
    csv(workspace / "mine", "\n".join(["image,label,part", "1.jpg,a,train", "2.jpg,b,test", "3.jpg,a,test"]))
    with pytest.raises(UserError, match="data gives no image of label 'b' to the part train"):
        run(workspace / "mine", capsys)


def test_groups_csv_joins_videos(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{label}/{number}.jpg" for label in "ab" for number in range(8)]
    touch(workspace / "mine", *names)
    (workspace / "mine/groups.csv").write_text(
        "image,group\na/0.jpg,x\na/1.jpg,x\na/1.jpg,y\nb/7.jpg,y\nb/1.jpg,z\nb/2.jpg,z\ngone.jpg,z\n"
    )
    shown = run(workspace / "mine", capsys)
    assert "groups.csv: images of one group stay in one part; skipped 1 rows that name no image of the data" in shown
    videos = pd.read_csv(paths.ANNOTATIONS, keep_default_na=False).set_index("image")["video"]
    assert videos[["a/0.jpg", "a/1.jpg", "b/7.jpg"]].nunique() == 1
    assert videos["b/1.jpg"] == videos["b/2.jpg"] != videos["a/0.jpg"]
    assert videos.drop(["a/0.jpg", "a/1.jpg", "b/7.jpg", "b/1.jpg", "b/2.jpg"]).eq("").all()
    parts = pd.read_csv(paths.SPLIT).set_index("image")["part"]
    assert parts[["a/0.jpg", "a/1.jpg", "b/7.jpg"]].nunique() == 1


def test_groups_csv_keeps_the_other_frames_of_a_joined_video(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": list("abcde"), "video": ["1", "1", "2", "2", "3"]})
    (tmp_path / "groups.csv").write_text("image,group\na,g\nc,g\n")
    merged, unknown = groups.merge(table, tmp_path / "groups.csv")
    assert unknown == 0
    assert list(merged["video"]) == ["group g"] * 4 + ["3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,video\n1,2\n", "the columns are image, video; expected image and group"),
        ("image,group\na.jpg,Anna\nb.jpg,anna\n", "the groups 'Anna' and 'anna' differ in spelling only"),
        ("image,group\nother.jpg,1\n", "groups.csv names none of the 1 images; expected names as in a.jpg"),
    ],
)
def test_groups_that_fit_nothing_are_one_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        groups.merge(pd.DataFrame({"image": ["a.jpg"], "video": [""]}), tmp_path / "groups.csv")


def test_groups_csv_without_rows_changes_nothing_and_names_are_read_as_in_a_table(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["a/1.jpg", "b/2.jpg"], "video": ["", ""]})
    (tmp_path / "groups.csv").write_text("image,group\n")
    assert groups.merge(table, tmp_path / "groups.csv")[0].equals(table)
    (tmp_path / "groups.csv").write_text("image,group\n./a/1.jpg, x \n b/2.jpg, x \n")
    assert groups.merge(table, tmp_path / "groups.csv")[0]["video"].nunique() == 1


def test_groups_csv_alone_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image,group,label\na/1.jpg,1,a\n")
    assert labels_table.find(tmp_path) is None


@pytest.mark.slow
def test_a_hundred_thousand_files_are_listed_in_seconds(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(50):
        folder = workspace / f"many/label {label}"
        folder.mkdir(parents=True)
        for number in range(2000):
            os.mknod(folder / f"{number}.jpg")
    start = time.perf_counter()
    run(workspace / "many", capsys)
    assert time.perf_counter() - start < 30
    assert read_json(paths.ANNOTATE_METRICS)["images"] == 100_000
