"""The page says what the results are, and real Chromium shows it without a network."""

import base64
import faulthandler
import html
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sklearn.metrics import f1_score

from stages import report
from stages.common.dataset import chunks
from stages.common.evaluation import calibration
from stages.common.evaluation.label_issues import suspicious_labels
from stages.common.evaluation.metrics import METRICS
from stages.common.evaluation.predictions import OF
from stages.common.evaluation.summary import label_scores, summary
from stages.common.explanation.examples import SHOWN
from stages.common.report import charts, gallery, page
from stages.common.report.examples import Evidence
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from tests.conftest import Clone, set_parameters

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
HOSTILE = ["sports", "a|b & c", "<script>alert(1)</script>", '" onload="x', "Ä 日本", "{{ 7 * 7 }}"]


def predictions(labels: list[str], images: int = 120, accuracy: float = 0.6) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    truth = generator.choice(labels, images)
    correct = generator.random(images) < accuracy
    probabilities = generator.random((images, len(labels))) + 4 * (
        np.array(labels)[None] == np.where(correct, truth, generator.choice(labels, images))[:, None]
    )
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "image": [f"{number:04d} <i>.jpg" for number in range(images)],
            "video": [str(number // 3) for number in range(images)],
            "label": truth,
            "prediction": np.array(labels)[probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
            **{OF + label: probabilities[:, place] for place, label in enumerate(labels)},
        }
    ).copy()  # in one piece: pandas is slow with a table of many


PAIR = [f"{name}_{one}" for name in ("image", "part", "label", "video") for one in (1, 2)] + ["similarity", "mirrored"]


def results(labels: list[str] = HOSTILE, **changes: Any) -> page.Results:
    table = changes.pop("predictions", predictions(labels))
    values = {
        "data": "data/raw/sample",
        "target": "category",
        "model": "scratch",
        "weights": "auto",
        "seed": 1,
        "split": {"seed": 1, "group": "video"},
        "scratch": {"filters": [4, 8], "epochs": 3},
    }
    epochs = np.arange(1, 4)
    curves = {"epoch": epochs, "phase": "scratch", "loss": 3 / epochs, "accuracy": epochs / 4}
    curves |= {"validation_loss": 2.0, "validation_accuracy": epochs / 6, "validation_macro_f1": epochs / 8}
    return page.Results(
        parameters=values | changes.pop("parameters", {}),
        synthetic=changes.pop("synthetic", True),
        weights=changes.pop("weights", "random"),
        commit="0123456789ab",
        annotate={"layout": "mpii", "images": 1200, "labelled": 900, "categories": 20, "activities": 40, "videos": 9},
        split={
            "train": 600,
            "validation": 100,
            "test": len(table),
            "unlabelled": 300,
            "held_out": 0,
            "labels": len(labels),
        },
        resize={"bad": 2},
        audit={"near_copies": 3, "near_copies_across_parts": 1, "near_copies_across_labels": 0},
        evaluation={
            "model": values["model"],
            **summary(table),
            "test_images_with_near_copies": 0,
            "macro_f1_without_near_copies": 0.5,
        },
        training={
            "seconds": 12.3,
            "seconds_per_epoch": 4.1,
            "epochs": 3,
            "images_per_second": 150.0,
            "parameters": 1234,
            "device": "CPU",
            "validation_macro_f1": 0.375,
            "best_epoch": 3,
        },
        curves=pd.DataFrame(curves),
        labels=label_scores(table, labels),
        predictions=table,
        pairs=changes.pop("pairs", pd.DataFrame(columns=PAIR)),
        suspicious=suspicious_labels(table),
        evidence=changes.pop("evidence", {}),
        frequencies=changes.pop("frequencies", {label: 1 / (place + 2) for place, label in enumerate(labels)}),
    )


def noise(names: list[str]) -> np.ndarray:
    """Pictures that JPEG can't compress."""
    generator = np.random.default_rng([ord(sign) for sign in "".join(names)])
    return generator.integers(0, 256, (len(names), 224, 224, 3), np.uint8)


def plain(names: list[str]) -> np.ndarray:
    return np.full((len(names), 96, 96, 3), 120, np.uint8)


def words(text: str) -> str:
    """What a reader sees, in one line."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())


@cache
def _drawn(svg: Callable[..., str], figures: str) -> list[str | None]:
    return charts.draw([charts.Figure("", json.loads(chart), [], []) for chart in json.loads(figures)])


@pytest.fixture(autouse=True)
def _equal_figures_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """V8 starts in half a second, and most pages here have the same figures."""

    def draw(figures: Sequence[charts.Figure]) -> list[str | None]:
        return _drawn(charts._svg, json.dumps([json.dumps(figure.chart) for figure in figures]))

    monkeypatch.setattr(page, "draw", draw)


def test_the_page_says_what_the_results_are() -> None:
    found = results()
    shown = words(page.page(found, plain))
    for name, text in METRICS.items():
        low, high = found.evaluation[f"{name}_interval"]
        assert f"{text} {found.evaluation[name]:.3f} ({low:.2f} to {high:.2f})" in shown
    base = found.predictions.assign(prediction="sports")
    macro_f1 = f1_score(base["label"], base["prediction"], average="macro", zero_division=0)
    assert f"always “sports”: {macro_f1:.3f}" in shown
    assert "commit 0123456789ab" in shown
    assert "training 12.3 s" in shown
    for row in found.labels.to_dict("records"):
        numbers = [f"{row[name]:.2f}" for name in ("f1", "precision", "recall")]
        assert f"{row['label']} {row['support']} {numbers[0]} {numbers[1]} {numbers[2]}" in shown
    correct = found.predictions["label"] == found.predictions["prediction"]
    error = calibration.calibration_error(found.predictions["probability"].to_numpy(), correct.to_numpy())
    assert f"calibration error {error:.3f}" in shown
    wrong = found.predictions[~correct]
    worst = wrong.groupby(["label", "prediction"]).size().max()
    assert re.search(rf"is predicted as .*: {worst} of \d+ images", shown)
    assert "skipped: could not be decoded 2" in shown


def test_the_galleries_are_the_most_confident_mistakes_and_the_least_confident_hits() -> None:
    found = results()
    text = page.page(found, plain)
    correct = found.predictions["label"] == found.predictions["prediction"]
    for section, chosen, ascending in (("mistakes", ~correct, False), ("hits", correct, True)):
        part = text[text.index(f'<section id="{section}">') :]
        part = part[: part.index("</section>")]
        names = [html.unescape(name) for name in re.findall(r"<small>(.*?)</small>", part)]
        expected = found.predictions[chosen].sort_values("probability", ascending=ascending).drop_duplicates("video")
        assert names == list(expected["image"][:SHOWN])


def test_beside_a_picture_is_the_evidence_for_the_predicted_and_the_true_label() -> None:
    table = predictions(HOSTILE)
    correct = table["label"] == table["prediction"]
    mistake, hit = (
        table[rows].sort_values("probability", ascending=up).iloc[0]
        for rows, up in ((~correct, False), (correct, True))
    )
    heat = np.zeros((4, 4), np.float32)
    upper, lower = heat.copy(), heat.copy()
    upper[0], lower[3] = 1, 1
    found = results(
        predictions=table, evidence={mistake["image"]: Evidence(upper, lower), hit["image"]: Evidence(upper, upper)}
    )
    text = page.page(found, plain)
    for section, row, brightest in (("mistakes", mistake, "upper lower"), ("hits", hit, "upper")):
        part = text[text.index(f'<section id="{section}">') :]
        part = part[part.index("<li>") : part.index("</li>")]
        assert html.unescape(re.findall(r"<small>(.*?)</small>", part)[0]) == row["image"]
        expected = list(dict.fromkeys([row["prediction"], row["label"]]))
        assert [html.unescape(name) for name in re.findall('alt="evidence for (.*?)"', part)] == expected
        pictures = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int).sum(axis=2)
            for data in re.findall(r"base64,([^\"]+)", part)
        ]
        halves = ["upper" if shown[:40].mean() > shown[-40:].mean() else "lower" for shown in pictures[1:]]
        assert " ".join(halves) == brightest


def test_the_pictures_are_the_images() -> None:
    red = np.zeros((1, 96, 96, 3), np.uint8)
    red[..., 0] = 200
    text = page.page(results(), lambda names: red)
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", text)
    assert data
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))), int)
    assert picture.shape == (gallery.SIDE, gallery.SIDE, 3)
    assert abs(picture - [200, 0, 0]).max() < 5


def test_names_are_text_and_nothing_else() -> None:
    text = page.page(results(), plain)
    assert "<script" not in text
    assert 'onload="' not in text
    assert "49" not in words(text[text.index('id="labels"') : text.index('id="confusion"')])
    assert "<i>.jpg" not in text
    assert "{{ 7 * 7 }}" in html.unescape(text)


def test_the_same_results_are_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "draw", charts.draw)
    assert page.page(results(), noise) == page.page(results(), noise)


def _abort(chart: dict[str, Any]) -> str:
    faulthandler.disable()  # no traceback of a death that is meant
    os.abort()


def test_figures_that_can_not_be_drawn_are_replaced_by_their_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = page.page(results(), plain)
    assert whole.count("<svg") == 3
    monkeypatch.setattr(charts, "_svg", _abort)
    text = page.page(results(), plain)
    assert "<svg" not in text
    assert "report: warning: the figures could not be drawn" in capsys.readouterr().out
    note = (
        "This figure could not be drawn: the address space of the process was limited (ulimit -v). Without that limit, "
        "dvc repro --force --single-item report draws it. "
    )
    assert words(text).count(note) == 3
    assert words(text).replace(note, "") == words(whole)


def test_many_labels_and_noisy_pictures_stay_under_5_mb() -> None:
    labels = [f"activity {number:03d}, general" for number in range(397)]
    found = results(labels, predictions=predictions(labels, 600))
    text = page.page(found, noise)
    assert len(text.encode()) < 5_000_000
    assert "others are omitted" in text
    assert re.search(r"The pictures of \d+ labels are omitted", text)
    assert len(re.findall(r"<img", text)) > 100


@pytest.mark.parametrize(
    "table",
    [
        predictions(["a", "b"], accuracy=1.0).assign(prediction=lambda table: table["label"]),
        predictions(["a", "b"]).assign(prediction=lambda table: np.where(table["label"] == "a", "b", "a")),
        predictions(["a", "b"], images=1),
        predictions(["a", "b"]).assign(video=""),
        predictions(["a", "b"]).assign(prediction="b", label="a"),
    ],
    ids=["all correct", "all wrong", "one image", "no videos", "one label in test"],
)
def test_odd_results_have_a_page(table: pd.DataFrame) -> None:
    shown = words(page.page(results(["a", "b"], predictions=table), plain))
    assert "nan" not in shown.lower()
    assert "None:" in shown or (table["label"] != table["prediction"]).nunique() == 2


def test_a_split_by_image_is_said_to_leak() -> None:
    by_image, by_video = (
        words(page.page(results(parameters={"split": {"seed": 1, "group": group}}), plain))
        for group in ("image", "video")
    )
    assert "split.group is image, so these scores are too high" in by_image
    assert "Images of a video are in several parts" in by_image
    assert "seen none of these videos" not in by_image
    assert "The model has seen none of these videos" in by_video
    assert "All images of a video are in the same part" in by_video
    assert "too high" not in by_video


def test_photographs_are_not_called_drawn_and_have_a_licence() -> None:
    shown = words(page.page(results(synthetic=False, parameters={"data": "/photographs"}), plain))
    assert "The photographs are in the layout of MPII Human Pose" in shown
    assert "photographs and labels are for research use only" in shown
    assert "drawn" not in shown
    assert "not photographs" not in shown


@pytest.mark.parametrize("data", ["data/raw/sample", "./data/raw/sample/"])
def test_drawn_images_are_said_not_to_be_photographs(data: str) -> None:
    shown = words(page.page(results(synthetic=True, parameters={"data": data}), plain))
    assert "The images are not photographs: the stage sample draws them" in shown
    assert "Scores on them say nothing about photographs." in shown
    assert "The drawn images are free of other people's rights." in shown
    assert "The photographs are in the layout" not in shown
    assert "applies to a model trained on them" not in shown


def test_drawn_images_are_nowhere_called_photographs() -> None:
    shown = words(page.page(results(synthetic=True), plain))
    for claim in ("whole photographs", "The photographs are"):
        assert claim not in shown


@pytest.mark.parametrize("synthetic", [True, False])
def test_imagenet_weights_have_terms_of_their_own(synthetic: bool) -> None:
    shown = words(page.page(results(synthetic=synthetic, weights="imagenet"), plain))
    assert "initial weights imagenet" in shown
    assert "ImageNet weights have their own terms" in shown
    for weights in ("random", "mine.weights.h5"):
        shown = words(page.page(results(synthetic=synthetic, weights=weights), plain))
        assert f"initial weights {weights}" in shown
        assert "ImageNet" not in shown


def write(found: page.Results, model: str) -> None:
    """Write what the stage needs into the current folder, as the stages before it do."""
    names = list(found.predictions["image"])
    chunks.write(paths.RESIZED / "00000.h5", names, {"pixels": plain(names)})
    heat = {kind: np.ones((len(names), 7, 7), np.float32) for kind in ("predicted", "true")}
    chunks.write(paths.heat_maps(model), names, heat)
    train = {"seconds": 12.3, "epochs": 3, "images": 600, "parameters": 1234, "device": "CPU"}
    for name, content in (
        (paths.timing(model) / "train.json", train),
        (paths.validation(model), {"validation_macro_f1": 0.375, "best_epoch": 3}),
        (paths.ANNOTATE_METRICS, found.annotate),
        (paths.SPLIT_METRICS, found.split),
        (paths.RESIZE_METRICS, found.resize),
        (paths.AUDIT_METRICS, found.audit),
        (paths.EVALUATION, found.evaluation),
    ):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(json.dumps(content))
    parts = {"image": "x", "part": "train", "label": ["running", "running", "sports"], "video": "1"}
    for path, table in (
        (paths.curves(model), found.curves),
        (paths.LABEL_SCORES, found.labels),
        (paths.NEAR_COPIES, found.pairs),
        (paths.SUSPICIOUS_LABELS, found.suspicious),
        (paths.predictions(model), found.predictions),
        (paths.SPLIT, pd.DataFrame(parts)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)


def test_report_writes_the_page_and_the_training_of_the_model(workspace: Path) -> None:
    write(results(["sports", "running"]), "scratch")
    report.main()
    first = paths.REPORT.read_bytes()
    shown = words(first.decode())
    assert "always “running”" in shown
    assert "none: not a git repository with commits" in shown
    assert "The images are not photographs" in shown
    assert "where in it the evidence for the predicted label is" in shown
    assert json.loads(paths.TRAINING.read_text())["seconds"] == 12.3
    assert paths.LEARNING_CURVES.read_bytes() == paths.curves("scratch").read_bytes()
    report.main()
    assert paths.REPORT.read_bytes() == first


def test_the_seconds_of_the_features_are_those_of_the_chosen_model(workspace: Path) -> None:
    write(results(["sports", "running"]), "backbone")
    set_parameters(paths.PARAMETERS, {"model": "backbone"})
    (paths.timing("backbone") / "features.json").write_text(json.dumps({"seconds": 100.0, "images": 900}))
    report.main()
    assert json.loads(paths.TRAINING.read_text())["seconds"] == 112.3


@pytest.mark.parametrize(
    ("data", "model", "weights", "initial"),
    [
        ("data/raw/sample", "scratch", "auto", "random"),
        ("photos", "scratch", "auto", "random"),
        ("photos", "scratch", "imagenet", "random"),
        ("./data/raw/sample/", "backbone", "auto", "random"),
        ("data/raw/sample", "backbone", "imagenet", "imagenet"),
        ("photos", "backbone", "auto", "imagenet"),
        ("photos", "backbone", "random", "random"),
    ],
)
def test_the_page_tells_the_data_and_the_initial_weights_of_the_parameters(
    workspace: Path, data: str, model: str, weights: str, initial: str
) -> None:
    write(results(["sports", "running"]), model)
    Path("photos").mkdir()
    set_parameters(paths.PARAMETERS, {"data": data, "model": model, "weights": weights})
    report.main()
    shown = words(paths.REPORT.read_text(encoding="utf-8"))
    assert f"initial weights {initial}" in shown
    assert ("ImageNet weights have their own terms" in shown) == (initial == "imagenet")
    assert ("The images are not photographs" in shown) == (data != "photos")
    assert ("The photographs are in the layout of MPII" in shown) == (data == "photos")


@pytest.mark.parametrize(
    "path",
    [
        paths.timing("scratch") / "train.json",
        paths.validation("scratch"),
        paths.predictions("scratch"),
        paths.curves("scratch"),
        paths.LABEL_SCORES,
        paths.SPLIT,
        paths.SPLIT_METRICS,
    ],
    ids=str,
)
@pytest.mark.parametrize("content", [None, b"", b"{\xff"])
def test_a_file_that_can_not_be_read_is_one_error_that_names_it(
    workspace: Path, path: Path, content: bytes | None
) -> None:
    write(results(["sports", "running"]), "scratch")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"could not read {path}: .*; make it again with dvc repro"):
        report.main()
    assert not paths.REPORT.exists()
    assert not paths.TRAINING.exists()


def test_the_commit_is_named_with_uncommitted_changes_of_code_or_parameters(clone: Clone) -> None:
    command = ("python", "-c", "from stages import report; print(report.commit())")
    commit = clone.run("git", "rev-parse", "--short=12", "HEAD").strip()
    (clone.path / "notes.txt").touch()
    assert clone.run(*command).strip() == commit
    clone.set(seed=2)
    assert clone.run(*command).strip() == f"{commit}, with uncommitted changes"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(CHROMIUM)} is installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=QUIET)


def opened(browser: Browser, path: Path, scheme: str, width: int) -> tuple[Page, list[str]]:
    """The page in a browser without network, and all requests and messages."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844}, offline=True)  # type: ignore[arg-type]
    tab, seen = context.new_page(), []

    def see(what: str) -> None:
        if not what.startswith("data:") and what != path.as_uri():
            seen.append(what)

    tab.on("request", lambda request: see(request.url[:500]))
    tab.on("console", lambda message: see(message.text))
    tab.on("pageerror", lambda error: see(str(error)))
    tab.goto(path.as_uri())
    return tab, seen


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_chromium_shows_it_offline_whole_and_accessible(
    browser: Browser, tmp_path: Path, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    path = tmp_path / "report.html"
    path.write_text(page.page(results(), noise), encoding="utf-8")
    tab, seen = opened(browser, path, scheme, width)
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.evaluate("document.images.length") > 20
    assert tab.evaluate("[...document.images].filter(each => !each.complete || !each.naturalWidth).length") == 0
    assert tab.evaluate("[...document.images].filter(each => !each.alt).length") == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    violations = Axe().run(tab).response["violations"]
    assert [(found["id"], found["nodes"][0]["html"][:200]) for found in violations] == []
    # brightness of background and text, as shown
    channels = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).map(Number)"
    back, fore = (sum(tab.evaluate(channels.format(name))) / 3 for name in ("backgroundColor", "color"))
    assert (back > 200 > 60 > fore) if scheme == "light" else (back < 60 < 200 < fore)
    labels = tab.locator("#labels tbody tr")
    assert labels.count() == len(HOSTILE)
    supports = [int(labels.nth(row).locator("td").first.inner_text()) for row in range(labels.count())]
    assert supports == sorted(supports, reverse=True)
    assert seen == []


def test_the_template_loads_nothing_from_elsewhere() -> None:
    text = page.TEMPLATE.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href|url\()[=\"'( ]*(?:https?:)?//", text)
    assert "<script" not in text
