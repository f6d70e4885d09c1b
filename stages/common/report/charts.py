"""The figures of the page: Vega-Lite charts as SVG, each with its numbers as a table."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.common.evaluation.calibration import reliability
from stages.common.runtime import workers


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite chart and, for those who can't see it, its numbers: names of columns, and rows of text."""

    title: str
    chart: dict[str, Any]
    head: list[str]
    rows: list[list[str]]


def learning_curves(curves: pd.DataFrame) -> list[Figure]:
    """Loss by epoch, and accuracy and macro F1 by epoch.

    Args:
        curves: what train writes to plots/.
    """
    loss = {"loss": "training (what is minimised)", "validation_loss": "validation (cross-entropy)"}
    scores = {
        "accuracy": "training accuracy",
        "validation_accuracy": "validation accuracy",
        "validation_macro_f1": "validation macro F1",
    }
    return [
        _by_epoch(curves, "Loss by epoch", "loss", loss),
        _by_epoch(curves, "Accuracy and macro F1 by epoch", "score", scores),
    ]


def _by_epoch(curves: pd.DataFrame, title: str, unit: str, columns: dict[str, str]) -> Figure:
    long = curves.rename(columns=columns).melt("epoch", list(columns.values()), "of", unit)
    encoding = {
        "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"}},
        "y": {"field": unit, "type": "quantitative"},
        "color": {"field": "of", "type": "nominal", "sort": None, "title": None, "legend": {"columns": 1}},
        "strokeDash": {"field": "of", "type": "nominal", "sort": None, "title": None},
    }
    layer = {"mark": {"type": "line", "point": {"size": 15}}, "encoding": encoding}
    rows = [[f"{row['epoch']}", *(f"{row[column]:.3f}" for column in columns)] for row in curves.to_dict("records")]
    return Figure(title, {"data": {"values": _values(long)}, **layer}, ["epoch", *columns.values()], rows)


def calibration_curve(probabilities: np.ndarray, correct: np.ndarray) -> Figure:
    """The fraction of correct predictions by the probability of the predicted label.

    Args:
        probabilities: of the predicted labels, (n,) float, 0 to 1.
        correct: whether the prediction is correct, (n,) bool.
    """
    found = reliability(probabilities, correct)
    table = pd.DataFrame({"images": found.images, "probability": found.expected, "correct": found.correct})
    table = table[table["images"] > 0]
    for column in ("probability", "correct"):
        table[column] = table[column] / table["images"]
    share = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    points = {
        "data": {"values": _values(table)},
        "mark": {"type": "point", "filled": True, "opacity": 0.9},
        "encoding": {
            "x": {"field": "probability", "title": "mean probability of the predicted label", **share},
            "y": {"field": "correct", "title": "fraction of correct predictions", **share},
            "size": {"field": "images", "type": "quantitative", "title": "images"},
        },
    }
    diagonal = {
        "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 4], "color": "currentColor", "strokeWidth": 1},
        "encoding": {"x": {"field": "x", **share}, "y": {"field": "y", **share}},
    }
    rows = [
        [f"{row['probability']:.2f}", f"{row['correct']:.2f}", f"{row['images']:.0f}"]
        for row in table.to_dict("records")
    ]
    title = "Fraction of correct predictions by probability"
    return Figure(title, {"layer": [diagonal, points]}, ["probability", "fraction correct", "images"], rows)


def _values(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def draw(figures: Sequence[Figure]) -> list[str | None]:
    """The figures as SVG; None for each of them if they can't be drawn.

    They are drawn by V8, which reserves address space without bound and aborts its process if it gets none, as under
    `ulimit -v`: therefore in a process of its own.
    """
    with ProcessPoolExecutor(1, initializer=_prepare) as pool:
        try:
            with workers.starting():
                drawn = pool.map(_svg, [figure.chart for figure in figures])
            return list(drawn)
        except BrokenProcessPool:
            print("report: warning: the figures could not be drawn (ulimit -v?): the page has their numbers only")
            return [None] * len(figures)


def _prepare() -> None:
    workers.prepare()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # V8 prints where it aborts


def _svg(chart: dict[str, Any]) -> str:
    """A Vega-Lite chart as SVG, in the page's text colour, so that it is readable on dark and light backgrounds."""
    import vl_convert

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
