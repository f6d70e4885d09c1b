"""All results of a model as one HTML page that stands alone: no network, no script, pictures included."""

import base64
import functools
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import vl_convert
from PIL import Image

from stages.common import bootstrap, calibration, parameters

TEMPLATE = Path(__file__).with_name("page.html")

SECTIONS = {
    "scores": "Scores",
    "run": "What was run",
    "labels": "Labels",
    "confusion": "Confusion",
    "training": "Training",
    "calibration": "Calibration",
    "mistakes": "Surest mistakes",
    "hits": "Least sure hits",
    "by-label": "Pictures by label",
    "data": "Data, licence and use",
}
SIDE = 160  # pixels of a picture
QUALITY = 80  # of its JPEG
SHOWN = 12  # pictures in a gallery over all labels
SHOWN_OF_LABEL = 4
PICTURES = 3_500_000  # bytes of all pictures in base64; the page stays under 5 MB
CONFUSED = 30  # labels in the matrix: more can't be read
FAILURES = 5


@dataclass(frozen=True)
class Results:
    """What the page shows. The dictionaries are what the stages' JSON files hold."""

    parameters: dict[str, Any]
    commit: str
    annotate: dict[str, Any]
    split: dict[str, Any]
    resize: dict[str, Any]
    evaluation: dict[str, Any]
    training: dict[str, Any]
    curves: pd.DataFrame
    labels: pd.DataFrame
    predictions: pd.DataFrame
    majority: str  # the most frequent label of the training part


def page(results: Results, read: Callable[[list[str]], np.ndarray]) -> str:
    """One HTML page that needs nothing else. The same for the same arguments.

    Args:
        results: what it shows.
        read: gives the pixels of images by their names, (n, size, size, 3) uint8.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    predictions, model = results.predictions, results.parameters["model"]
    right = (predictions["label"] == predictions["prediction"]).to_numpy()
    text = environment.get_template(TEMPLATE.name).render(
        model=model,
        target=results.parameters["target"],
        sections=SECTIONS.items(),
        side=SIDE,
        images=len(predictions),
        videos=len(bootstrap.tally(predictions, _known(predictions))),
        by_video=results.parameters["split"]["group"] == "video",
        majority=results.majority,
        facts=_facts(results),
        parameters=parameters.flat(results.parameters).items(),
        labels=results.labels.to_dict("records"),
        confusion=_confusion(results),
        failures=_failures(results, right),
        training=_training_line(results.training),
        curves=_curves(results.curves),
        calibration=_calibration(results, right),
        data=_data(results),
        **_scores(results),
        **_galleries(results, read),
    )
    # HTML knows no control characters, which names may hold.
    return re.sub(r"[^\n\x20-\x7e\xa0-\U0010ffff]", "\ufffd", text)


def _known(predictions: pd.DataFrame) -> list[str]:
    return sorted({*predictions["label"], *predictions["prediction"]})


def _scores(results: Results) -> dict[str, Any]:
    """The model's scores beside those of always saying the most frequent label, and whether they differ."""
    base = results.predictions.assign(prediction=results.majority)
    base_scores = bootstrap.scores(bootstrap.tally(base, _known(base)).sum(axis=0))
    base_ends = bootstrap.intervals(base)
    scores = [
        {
            "name": text,
            "value": results.evaluation[name],
            "ends": results.evaluation[f"{name}_interval"],
            "base": float(base_score),
            "base_ends": base_ends[name],
        }
        for (name, text), base_score in zip(bootstrap.METRICS.items(), base_scores, strict=True)
    ]
    found = bootstrap.differences(base, results.predictions)["macro_f1"]
    clear = "more than" if found.p < bootstrap.ALPHA else "no more than"
    against = (
        f"Against always saying \u201c{results.majority}\u201d, the training part's most frequent label, macro F1 is "
        f"{found.difference:+.3f}, {clear} the choice of test videos explains (95 % interval {found.low:+.3f} to {found.high:+.3f})."
    )
    return {"scores": scores, "against": against}


def _facts(results: Results) -> list[tuple[str, str]]:
    values, cost = results.parameters, results.training
    return [
        ("model", values["model"]),
        ("weights at the start", _weights(values)),
        ("data", values["data"]),
        ("learnt", f"{values['target']}, {results.split['labels']} labels"),
        ("split", f"by {values['split']['group']}, seed {values['split']['seed']}"),
        ("seed", str(values["seed"])),
        ("commit", results.commit),
        ("parameters of the network", f"{cost['parameters']:,}"),
        ("training", f"{cost['seconds']:,.1f} s"),
        ("device", cost["device"]),
    ]


def _weights(values: dict[str, Any]) -> str:
    if values["model"] == "scratch":
        return "random"
    auto = "random" if values["data"] == parameters.SAMPLE else "imagenet"
    return f"{auto} (auto)" if values["weights"] == "auto" else str(values["weights"])


def _training_line(cost: dict[str, Any]) -> str:
    return (
        f"{cost['seconds']:,.1f} seconds in all, the backbone's pass over the images included where there is one; "
        f"{cost['epochs']} epochs of {cost['seconds_per_epoch']:.2f} s, {cost['images_per_second']:,.0f} images a second, on "
        f"{cost['device']}. The best epoch was number {cost['best_epoch']}, with macro F1 {cost['validation_macro_f1']:.3f} on "
        "the validation images."
    )


def _confusion(results: Results) -> dict[str, Any]:
    names = list(results.labels["label"][:CONFUSED])
    counts = pd.crosstab(results.predictions["label"], results.predictions["prediction"])
    totals = counts.sum(axis=1).reindex(names, fill_value=0).to_numpy()
    table = counts.reindex(index=names, columns=names, fill_value=0).to_numpy()
    rows = [
        [{"count": int(count), "share": round(float(count / total), 2)} if count else {"count": 0} for count in row]
        for row, total in zip(table, totals, strict=True)
    ]
    return {"names": names, "rows": rows, "left_out": len(results.labels) - len(names)}


def _failures(results: Results, right: np.ndarray) -> list[str]:
    wrong = results.predictions[~right]
    pairs = wrong.groupby(["label", "prediction"]).size().reset_index(name="times")
    pairs = pairs.sort_values(["times", "label", "prediction"], ascending=[False, True, True]).head(FAILURES)
    support = dict(zip(results.labels["label"], results.labels["support"], strict=True))
    lines = [
        f"{row['label']} is taken for {row['prediction']}: {row['times']} of {support[row['label']]} images"
        for row in pairs.to_dict("records")
    ]
    present = results.labels[results.labels["support"] > 0]
    if never := list(present.loc[present["recall"] == 0, "label"]):
        lines.append(f"Never found: {', '.join(never)}")
    return lines or ["None in the test part."]


def _curves(curves: pd.DataFrame) -> list[dict[str, Any]]:
    def figure(title: str, unit: str, columns: dict[str, str]) -> dict[str, Any]:
        long = curves.rename(columns=columns).melt("epoch", list(columns.values()), "of", unit)
        encoding = {
            "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"}},
            "y": {"field": unit, "type": "quantitative"},
            "color": {"field": "of", "type": "nominal", "sort": None, "title": None, "legend": {"columns": 1}},
            "strokeDash": {"field": "of", "type": "nominal", "sort": None, "title": None},
        }
        layer = {"mark": {"type": "line", "point": {"size": 15}}, "encoding": encoding}
        rows = [[f"{row['epoch']}", *(f"{row[column]:.3f}" for column in columns)] for row in curves.to_dict("records")]
        svg = _svg({"data": {"values": _values(long)}, **layer})
        return {"title": title, "svg": svg, "head": ["epoch", *columns.values()], "rows": rows}

    loss = {"loss": "training (what is minimised)", "validation_loss": "validation (cross-entropy)"}
    shares = {
        "accuracy": "training accuracy",
        "validation_accuracy": "validation accuracy",
        "validation_macro_f1": "validation macro F1",
    }
    return [figure("Loss by epoch", "loss", loss), figure("Accuracy and macro F1 by epoch", "score", shares)]


def _calibration(results: Results, right: np.ndarray) -> dict[str, Any]:
    probabilities = results.predictions["probability"].to_numpy()
    found = calibration.reliability(probabilities, right)
    table = pd.DataFrame({"images": found.images, "probability": found.expected, "right": found.right})
    table = table[table["images"] > 0]
    for column in ("probability", "right"):
        table[column] = table[column] / table["images"]
    share = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    points = {
        "data": {"values": _values(table)},
        "mark": {"type": "point", "filled": True, "opacity": 0.9},
        "encoding": {
            "x": {"field": "probability", "title": "mean probability of the predicted label", **share},
            "y": {"field": "right", "title": "fraction that is right", **share},
            "size": {"field": "images", "type": "quantitative", "title": "images"},
        },
    }
    diagonal = {
        "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 4], "color": "currentColor", "strokeWidth": 1},
        "encoding": {"x": {"field": "x", **share}, "y": {"field": "y", **share}},
    }
    title = "How often predictions of about one probability are right"
    rows = [
        [f"{row['probability']:.2f}", f"{row['right']:.2f}", f"{row['images']:.0f}"] for row in table.to_dict("records")
    ]
    error = results.evaluation["expected_calibration_error"]
    text = (
        f"Expected calibration error {error:.3f}: how far, on average, the probability of the predicted label is from how "
        "often it is right. On the dashed line probabilities are what they say; below it the model is too sure."
    )
    figure = {
        "title": title,
        "svg": _svg({"layer": [diagonal, points]}),
        "head": ["probability", "fraction right", "images"],
        "rows": rows,
    }
    return {"text": text, "figure": figure}


def _values(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def _svg(chart: dict[str, Any]) -> str:
    """A Vega-Lite chart as SVG, in the page's own colour of text, so that it can be read on dark and light."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor"}
    sizes = {"labelFontSize": 12, "titleFontSize": 13}
    lines = {
        "gridColor": "currentColor",
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridOpacity": 0.15,
    }
    config = {
        "background": None,
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {**text, **lines, **sizes},
        "legend": {**text, "orient": "bottom", "labelLimit": 300, "labelFontSize": 13, "titleFontSize": 13},
        "range": {"category": ["#3b82f6", "#d97706", "#0d9488"]},
        "point": {"color": "#3b82f6"},
    }
    svg: str = vl_convert.vegalite_to_svg({"width": 400, "height": 240, "config": config, **chart})
    return svg


def _galleries(results: Results, read: Callable[[list[str]], np.ndarray]) -> dict[str, Any]:
    """The pictures, as many as `PICTURES` has room for: those over all labels first, then label by label."""
    order = results.predictions.sort_values(["probability", "image"], ascending=[False, True])
    hit = order["label"] == order["prediction"]
    # One frame of each video: the others look alike.
    own = order["video"].where(order["video"] != "", order["image"])
    mistakes, hits = (chosen[~own[chosen.index].duplicated()] for chosen in (order[~hit], order[hit].iloc[::-1]))
    pictures = functools.lru_cache(maxsize=None)(functools.partial(_picture, read))
    left = PICTURES

    def gallery(chosen: pd.DataFrame, most: int) -> list[dict[str, Any]]:
        nonlocal left
        columns = ["image", "label", "prediction", "probability"]
        shown: list[dict[str, Any]] = [
            {**row, "data": pictures(row["image"])}  # type: ignore[dict-item]
            for row in chosen[columns].head(most).to_dict("records")
        ]
        left -= sum(len(each["data"]) for each in shown)
        return shown

    found: dict[str, Any] = {"mistakes": gallery(mistakes, SHOWN), "hits": gallery(hits, SHOWN)}
    groups, present = [], results.labels[results.labels["support"] > 0]
    for row in present.to_dict("records"):
        before, same = left, order["label"] == row["label"]
        group = {
            "label": row["label"],
            "images": int(same.sum()),
            "right": int((same & hit).sum()),
            "mistakes": gallery(mistakes[mistakes["label"] == row["label"]], SHOWN_OF_LABEL),
            "hits": gallery(hits[hits["label"] == row["label"]], SHOWN_OF_LABEL),
        }
        if left < 0:
            left = before
            break
        groups.append(group)
    return {**found, "groups": groups, "pictures_left_out": len(present) - len(groups)}


def _picture(read: Callable[[list[str]], np.ndarray], image: str) -> str:
    picture = Image.fromarray(read([image])[0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _data(results: Results) -> dict[str, Any]:
    drawn = results.parameters["data"] == parameters.SAMPLE
    split, annotate = results.split, results.annotate
    if drawn:
        text = (
            "The images are not photographs: they are drawn by the stage sample, in MPII's layout and with its labels, so that "
            "everything can be tried without a download. Scores on them say nothing of photographs."
        )
        licence = "The drawn images are free of others' rights. MPII Human Pose itself, for which this is made, is for research use."
    else:
        text = (
            "The photographs are in the layout of MPII Human Pose (http://human-pose.mpi-inf.mpg.de): frames of videos."
        )
        licence = (
            "MPII's photographs and labels are for research use; a model learnt from them, and the pictures on this page, "
            "are bound by that. With photographs of another origin their own licence counts."
        )
    if "imagenet" in _weights(results.parameters):
        licence += " ImageNet weights have terms of their own (research)."
    rows = [
        ("in the annotation file", f"{annotate['images']:,}"),
        ("with labels", f"{annotate['labelled']:,}"),
        ("to train", f"{split['train']:,}"),
        ("to validate", f"{split['validation']:,}"),
        ("to test", f"{split['test']:,}"),
        ("without label: never trained on, never scored", f"{split['unlabelled']:,}"),
        ("that could not be decoded, left out", f"{results.resize['bad']:,}"),
    ]
    labels = (
        f"Labels come from MPII's annotation file: one activity an image, in {annotate['categories']} categories and "
        f"{annotate['activities']} activities. "
        + (
            "Frames of one video are all in one part."
            if results.parameters["split"]["group"] == "video"
            else "Frames of one video are in several parts."
        )
    )
    return {"text": text, "licence": licence, "rows": rows, "labels": labels}
