"""The page: what it says is what the results are, and real Chromium shows it without a network."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from stages import evaluate, report
from stages.common import bootstrap, calibration, chunks, page
from stages.common.problem import Problem
from tests.conftest import ROOT

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
    right = generator.random(images) < accuracy
    probabilities = generator.random((images, len(labels))) + 4 * (
        np.array(labels)[None] == np.where(right, truth, generator.choice(labels, images))[:, None]
    )
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "image": [f"{number:04d} <i>.jpg" for number in range(images)],
            "video": [str(number // 3) for number in range(images)],
            "label": truth,
            "prediction": np.array(labels)[probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
        }
    )


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
        commit="0123456789ab",
        annotate={"images": 1200, "labelled": 900, "categories": 20, "activities": 40},
        split={"train": 600, "validation": 100, "test": len(table), "unlabelled": 300, "labels": len(labels)},
        resize={"bad": 2},
        evaluation={"model": values["model"], **evaluate.score(table)},
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
        labels=evaluate.report(table, labels),
        predictions=table,
        majority=changes.pop("majority", labels[0]),
    )


def noise(names: list[str]) -> np.ndarray:
    """Pictures that JPEG can't make small."""
    generator = np.random.default_rng([ord(sign) for sign in "".join(names)])
    return generator.integers(0, 256, (len(names), 224, 224, 3), np.uint8)


def plain(names: list[str]) -> np.ndarray:
    return np.full((len(names), 96, 96, 3), 120, np.uint8)


def words(text: str) -> str:
    """What a reader sees, in one line."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())


def test_the_page_says_what_the_results_are() -> None:
    found = results()
    shown = words(page.page(found, plain))
    for name, text in bootstrap.METRICS.items():
        low, high = found.evaluation[f"{name}_interval"]
        assert f"{text} {found.evaluation[name]:.3f} ({low:.2f} to {high:.2f})" in shown
    base = found.predictions.assign(prediction="sports")
    counts = bootstrap.tally(base, sorted({*base["label"]})).sum(axis=0)
    assert f"always “sports”: {bootstrap.scores(counts)[0]:.3f}" in shown
    assert "commit 0123456789ab" in shown
    assert "training 12.3 s" in shown
    for row in found.labels.to_dict("records"):
        numbers = [f"{row[name]:.2f}" for name in ("f1", "precision", "recall")]
        assert f"{row['label']} {row['support']} {numbers[0]} {numbers[1]} {numbers[2]}" in shown
    right = found.predictions["label"] == found.predictions["prediction"]
    error = calibration.calibration_error(found.predictions["probability"].to_numpy(), right.to_numpy())
    assert f"calibration error {error:.3f}" in shown
    wrong = found.predictions[~right]
    worst = wrong.groupby(["label", "prediction"]).size().max()
    assert re.search(rf"is taken for .*: {worst} of \d+ images", shown)
    assert "could not be decoded, left out 2" in shown


def test_the_galleries_are_the_surest_mistakes_and_the_least_sure_hits() -> None:
    found = results()
    text = page.page(found, plain)
    right = found.predictions["label"] == found.predictions["prediction"]
    for section, chosen, ascending in (("mistakes", ~right, False), ("hits", right, True)):
        part = text[text.index(f'<section id="{section}">') :]
        part = part[: part.index("</section>")]
        names = [html.unescape(name) for name in re.findall(r"<small>(.*?)</small>", part)]
        expected = found.predictions[chosen].sort_values("probability", ascending=ascending).drop_duplicates("video")
        assert names == list(expected["image"][: page.SHOWN])


def test_the_pictures_are_the_images() -> None:
    red = np.zeros((1, 96, 96, 3), np.uint8)
    red[..., 0] = 200
    text = page.page(results(), lambda names: red)
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", text)
    assert data
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))), int)
    assert picture.shape == (page.SIDE, page.SIDE, 3)
    assert abs(picture - [200, 0, 0]).max() < 5


def test_names_are_text_and_nothing_else() -> None:
    text = page.page(results(), plain)
    assert "<script" not in text
    assert 'onload="' not in text
    assert "49" not in words(text[text.index('id="labels"') : text.index('id="confusion"')])
    assert "<i>.jpg" not in text
    assert "{{ 7 * 7 }}" in html.unescape(text)


def test_the_same_results_are_the_same_bytes() -> None:
    assert page.page(results(), noise) == page.page(results(), noise)


def test_many_labels_and_noisy_pictures_stay_under_5_mb() -> None:
    labels = [f"activity {number:03d}, general" for number in range(397)]
    found = results(labels, predictions=predictions(labels, 2700))
    text = page.page(found, noise)
    assert len(text.encode()) < 5_000_000
    assert "others are left out" in text
    assert re.search(r"The pictures of \d+ labels are left out", text)
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
    ids=["all right", "all wrong", "one image", "no videos", "one label in test"],
)
def test_odd_results_have_a_page(table: pd.DataFrame) -> None:
    shown = words(page.page(results(["a", "b"], predictions=table), plain))
    assert "nan" not in shown.lower()
    assert "None:" in shown or (table["label"] != table["prediction"]).nunique() == 2


def test_a_split_by_image_is_said_to_leak_and_photographs_are_not_called_drawn() -> None:
    text = words(page.page(results(parameters={"split": {"seed": 1, "group": "image"}, "data": "/photographs"}), plain))
    assert "these scores are too high" in text
    assert "research use" in text
    assert "drawn" not in text


def test_report_writes_the_page_and_refuses_a_model_that_was_not_trained(workspace: Path) -> None:
    with pytest.raises(Problem, match=r"holds no train.json; run dvc repro to train scratch"):
        report.main()
    found = results(["sports", "running"])
    folders = ("data/resized", "metrics", "plots", "models/scratch/timing")
    for folder in folders:
        Path(folder).mkdir(parents=True)
    names = list(found.predictions["image"])
    chunks.write(Path("data/resized/0.h5"), names, {"pixels": plain(names)})
    train = {"seconds": 12.3, "epochs": 3, "images": 600, "parameters": 1234, "device": "CPU"}
    for name, content in (
        ("models/scratch/timing/train.json", train),
        ("models/scratch/validation.json", {"validation_macro_f1": 0.375, "best_epoch": 3}),
        ("metrics/annotate.json", found.annotate),
        ("metrics/split.json", found.split),
        ("metrics/chunked-resize.json", found.resize),
        ("metrics/evaluation.json", found.evaluation),
    ):
        Path(name).write_text(json.dumps(content))
    found.curves.to_csv("plots/train-scratch.csv", index=False)
    found.labels.to_csv("plots/labels.csv", index=False)
    found.predictions.to_csv("models/scratch/predictions.csv", index=False)
    rows = pd.DataFrame({"image": "x", "part": "train", "label": ["running", "running", "sports"], "video": "1"})
    rows.to_csv("data/split.csv", index=False)
    report.main()
    first = report.PAGE.read_bytes()
    assert "always “running”" in first.decode()
    assert "none: not run in a git repository" in first.decode()
    assert json.loads(report.METRICS.read_text())["seconds"] == 12.3
    assert report.CURVES.read_bytes() == Path("plots/train-scratch.csv").read_bytes()
    report.main()
    assert report.PAGE.read_bytes() == first


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(CHROMIUM)} is installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=QUIET)


def opened(browser: Browser, path: Path, scheme: str, width: int) -> tuple[Page, list[str]]:
    """The page in a browser without network, and all that it asked for or complained of."""
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


def test_the_template_asks_for_nothing_from_elsewhere() -> None:
    text = (ROOT / "stages/common/page.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href|url\()[=\"'( ]*(?:https?:)?//", text)
    assert "<script" not in text
