"""The audit: near-copies are found and others are not, the leak is weighed, groups.csv ends it, wrong labels come first."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from stages import annotate, audit, chunked_resize, evaluate, sample, split
from stages.common.audit import leak, near_copies
from stages.common.audit.leak import test_images_copied as images_copied
from stages.common.evaluation.label_issues import suspicious_labels
from stages.common.evaluation.predictions import OF
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import read_json, write_csv
from tests.conftest import set_parameters

SIZE = 96


def photograph(seed: int) -> Image.Image:
    """Coloured rectangles and gradients: detail at several scales, as in a photograph."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(0, 256, (3, 4, 3), np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    for _ in range(14):
        left, top, width, height = generator.integers(0, (280, 200, 120, 100))
        image.paste(tuple(map(int, generator.integers(0, 256, 3))), (left, top, left + width + 8, top + height + 8))
    return image


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "itself": lambda image: image,
    "smaller": lambda image: image.resize((128, 96)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": lambda image: image.crop((10, 4, 314, 232)),
    "mirrored and cropped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 8, 306, 240)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.75),
}


def small(images: list[Image.Image]) -> np.ndarray:
    pixels = np.stack([np.asarray(image.resize((SIZE, SIZE))) for image in images])
    names = [str(number) for number in range(len(images))]
    counted: list[int] = []
    result = near_copies.thumbnails(lambda part: pixels[[int(name) for name in part]], names, counted.append)
    assert sum(counted) == len(images)
    return result


def test_each_kind_of_copy_is_found_and_nothing_else() -> None:
    originals = [photograph(seed) for seed in range(60)]
    images = [*originals, *(change(originals[place]) for place, change in enumerate(COPIES.values()))]
    counted: list[int] = []
    pairs = near_copies.find(small(images), counted.append)
    found = dict(zip(zip(pairs["first"], pairs["second"], strict=True), pairs["mirrored"], strict=True))
    assert found == {(place, 60 + place): "mirrored" in name for place, name in enumerate(COPIES)}
    assert sum(counted) == len(images)
    assert (pairs["similarity"].between(near_copies.STEPS[-1].similarity, 1)).all()


def test_plain_images_and_one_horizon_are_no_copies() -> None:
    horizons = []
    for place, colour in ((110, 90), (120, 60)):
        image = Image.new("RGB", (320, 240), (200, 180, 160))
        image.paste((colour,) * 3, (0, place, 320, 240))
        image.paste((30, 90, 200), (60 + colour, 60, 100 + colour, 170))
        horizons.append(image)
    plain = [Image.new("RGB", (320, 240), (shade,) * 3) for shade in (100, 120)]
    assert near_copies.find(small([*horizons, *plain]), lambda _: None).empty


def test_a_thousand_equal_images_are_pairs_with_the_first_one() -> None:
    images = small([photograph(1), photograph(2)])[[0, 1, *[0] * 999]]
    pairs = near_copies.find(images, lambda _: None)
    assert len(pairs) == 999
    assert set(pairs["first"]) == {0}
    groups = leak.groups(pairs, len(images))
    assert groups[1] == -1
    assert set(np.delete(groups, 1)) == {0}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_groups_are_what_is_connected(edges: list[tuple[int, int]]) -> None:
    edges = [(min(pair), max(pair)) for pair in edges if pair[0] != pair[1]]
    found = leak.groups(pd.DataFrame(edges, columns=["first", "second"], dtype=int), 20)
    connected = {number: {number} for number in range(20)}
    for one, two in edges:
        union = connected[one] | connected[two]
        for number in union:
            connected[number] = union
    assert list(found) == [min(connected[n]) if len(connected[n]) > 1 else -1 for n in range(20)]


def run_until_audit(capsys: pytest.CaptureFixture[str]) -> str:
    for stage in (annotate, split, chunked_resize, audit):
        stage.main()
    return capsys.readouterr().out


@pytest.fixture
def copied(workspace: Path) -> Path:
    """Forty photographs in folders of two labels, and a copy of each, half of them with the other label."""
    folder = workspace / "mine"
    for seed in range(40):
        label, other = "ab"[seed % 2], "ab"[(seed + (seed < 20)) % 2]
        for name, image in ((f"{label}/{seed}.png", photograph(seed)), (f"{other}/copy {seed}.png", photograph(seed))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
    set_parameters(Path("params.yaml"), {"data": str(folder), "resize.size": SIZE})
    return folder


def test_copies_in_two_parts_and_with_two_labels_are_counted_and_groups_csv_keeps_them_together(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_until_audit(capsys)
    metrics = read_json(paths.AUDIT_METRICS)
    table = pd.read_csv(paths.NEAR_COPIES)
    assert metrics["near_copies"] == len(table) == 40
    assert metrics["images_with_near_copies"] == 80
    assert metrics["near_copies_across_labels"] == 20
    parts = pd.read_csv(paths.SPLIT).set_index("image")["part"]
    across = parts[table["image_1"]].to_numpy() != parts[table["image_2"]].to_numpy()
    assert metrics["near_copies_across_parts"] == across.sum() > 5
    assert list(across) == sorted(across, reverse=True)  # those in two parts come first
    assert (
        "test images have a near-copy in train or validation; add the rows of data/groups.csv to groups.csv in" in shown
    )
    page = paths.DATA_PAGE.read_text(encoding="utf-8")
    assert "40 pairs of images are near-copies by content" in page
    assert page.count('<ul class="pairs">') == 1
    (copied / "groups.csv").write_bytes(paths.COPY_GROUPS.read_bytes())
    run_until_audit(capsys)
    metrics = read_json(paths.AUDIT_METRICS)
    assert metrics["near_copies"] == 40
    assert metrics["near_copies_across_parts"] == metrics["test_images_with_near_copies_in_training"] == 0


def test_no_near_copy_of_the_sample_is_in_two_parts_unless_videos_are_divided(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_parameters(Path("params.yaml"), {"sample.images": 400, "resize.size": 224})
    sample.main()
    run_until_audit(capsys)
    found = read_json(paths.AUDIT_METRICS)
    assert found["near_copies"] > 20
    assert found["near_copies_across_parts"] == 0
    assert pd.read_csv(paths.NEAR_COPIES)["same_video"].all()
    set_parameters(Path("params.yaml"), {"split.group": "image"})
    run_until_audit(capsys)
    assert read_json(paths.AUDIT_METRICS)["near_copies_across_parts"] > 5


def test_the_weight_of_the_leak_is_the_score_without_copied_test_images(workspace: Path) -> None:
    names = [f"{number}.jpg" for number in range(8)]
    table = pd.DataFrame({"image": names, "video": "", "label": list("aabbaabb"), "prediction": list("aabbbaac")})
    table["probability"] = 0.6
    for label in "abc":  # no image of c: it counts in no mean
        table[label] = np.where(table["prediction"] == label, 0.6, 0.2)
    write_csv(paths.predictions("scratch"), table)
    rows = [
        ("0.jpg", "test", "x.jpg", "train"),
        ("y.jpg", "validation", "1.jpg", "test"),
        ("2.jpg", "test", "3.jpg", "test"),
    ]
    pairs = pd.DataFrame(rows, columns=["image_1", "part_1", "image_2", "part_2"])
    assert images_copied(pairs) == {"0.jpg", "1.jpg"}
    write_csv(paths.NEAR_COPIES, pairs)
    evaluate.main()
    found = read_json(paths.EVALUATION)
    assert found["test_images_with_near_copies"] == 2
    # Of 2 to 7: a is right for 1 of 2, predicted 2 times; b for 2 of 4, predicted 3 times.
    assert found["macro_f1_without_near_copies"] == pytest.approx((2 * 1 / 4 + 2 * 2 / 7) / 2, abs=1e-6)
    assert found["macro_f1_without_near_copies"] < found["macro_f1"]
    pairs = pd.DataFrame([(name, "test", "x.jpg", "train") for name in names], columns=pairs.columns)
    write_csv(paths.NEAR_COPIES, pairs)
    evaluate.main()
    assert read_json(paths.EVALUATION)["macro_f1_without_near_copies"] is None


def test_equal_images_leak_whichever_is_the_first() -> None:
    images = small([photograph(1)])[[0] * 10]
    pairs = near_copies.find(images, lambda _: None)
    parts = np.array(["test"] * 5 + ["train"] * 5)
    for place in (1, 2):
        rows = pairs["first" if place == 1 else "second"]
        pairs[f"image_{place}"], pairs[f"part_{place}"] = rows.astype(str), parts[rows]
    assert images_copied(pairs) == set("01234")
    assert images_copied(pairs.assign(part_1="test", part_2="test")) == set()
    assert images_copied(pairs.head(0)) == set()


def test_a_planted_wrong_label_comes_first() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(["a", "b", "c"], 100)
    # b is hard: its images have a low probability of b throughout.
    strength = {"a": 3.0, "b": 1.0, "c": 3.0}
    logits = generator.normal(0, 0.5, (300, 3))
    for number, name in enumerate("abc"):
        logits[labels == name, number] += strength[name]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = generator.choice(300, 15, replace=False)
    noisy = labels.copy()
    noisy[wrong] = [{"a": "b", "b": "c", "c": "a"}[name] for name in labels[wrong]]
    table = pd.DataFrame({"image": np.arange(300).astype(str), "label": noisy})
    for number, name in enumerate("abc"):
        table[OF + name] = probabilities[:, number]
    found = suspicious_labels(table)
    assert len(set(found["image"].head(15).astype(int)) & set(wrong)) >= 12
    assert (found["label"] != found["suggested"]).all()
    assert found["quality"].is_monotonic_increasing


def test_the_sizes_are_those_of_the_originals_upright(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = workspace / "mine"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(3):
            photograph(ord(label) * number).resize((100 + number, 60)).save(folder / label / f"{number}.png")
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    photograph(9).save(folder / "a/turned.jpg", exif=exif)
    set_parameters(Path("params.yaml"), {"data": str(folder), "resize.size": SIZE})
    run_until_audit(capsys)
    shown = " ".join(re.sub("<[^>]*>", " ", paths.DATA_PAGE.read_text(encoding="utf-8")).split())
    assert "smallest original 100 x 60 pixels" in shown
    assert "largest original 240 x 320 pixels" in shown
    assert "portrait originals 1 (14%)" in shown


def test_a_page_of_hostile_names_has_no_markup_of_theirs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = "<script>alert(1)<&script>"
    for name in (label, "b"):
        (workspace / "mine" / name).mkdir(parents=True)
        for number in range(3):
            photograph(number).save(workspace / "mine" / name / f"<b>{number}.png")
    set_parameters(Path("params.yaml"), {"data": "mine", "resize.size": SIZE})
    run_until_audit(capsys)
    page = paths.DATA_PAGE.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_images_that_are_not_used_are_not_looked_at(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that could not be decoded, and unlabelled ones."""
    for name in ("a", "b", "unlabelled"):
        (workspace / "mine" / name).mkdir(parents=True)
        for number in range(4):
            photograph(number + ord(name[0])).save(workspace / "mine" / name / f"{number}.png")
    (workspace / "mine/a/bad.jpg").write_text("<html>")
    set_parameters(Path("params.yaml"), {"data": "mine", "resize.size": SIZE, "resize.max_bad": 0.5})
    run_until_audit(capsys)
    assert read_json(paths.AUDIT_METRICS)["images"] == 8


def test_an_original_that_has_changed_since_it_was_decoded_is_one_error(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_until_audit(capsys)
    (copied / "a/0.png").write_text("<html>")
    with pytest.raises(
        UserError, match=r"a/0.png: can't be read any more \(.*\); it was decoded before: run dvc repro"
    ):
        audit.main()
