"""All results of a model as one HTML page that needs nothing else: no network, no script, pictures included.

The prose is in page.html, the figures in charts.py, the pictures in gallery.py and examples.py; here are the numbers that they need.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.common.evaluation import bootstrap
from stages.common.evaluation.metrics import METRICS, Scorer
from stages.common.evaluation.predictions import OF, probabilities_of
from stages.common.report import gallery
from stages.common.report.charts import calibration_curve, draw, learning_curves
from stages.common.report.examples import Evidence, examples
from stages.common.report.template import render
from stages.common.runtime.parameters import flatten

TEMPLATE = Path(__file__).with_name("page.html")
MAX_CONFUSED = 30  # labels in the matrix: more can't be read
MAX_FAILURES = 5
MAX_PAIRS = 8


@dataclass(frozen=True)
class Results:
    """What the page shows. The dictionaries are the content of the stages' JSON files."""

    parameters: dict[str, Any]  # of data, split, resizing and the chosen model
    synthetic: bool  # whether the images are the drawn sample
    weights: str  # what the model started from
    commit: str
    annotate: dict[str, Any]
    split: dict[str, Any]
    resize: dict[str, Any]
    audit: dict[str, Any]
    evaluation: dict[str, Any]
    training: dict[str, Any]
    curves: pd.DataFrame
    labels: pd.DataFrame
    predictions: pd.DataFrame
    pairs: pd.DataFrame  # of near-copies, those in two parts first
    suspicious: pd.DataFrame  # labels of test images
    evidence: dict[str, Evidence]  # of the images with a heat map
    frequencies: dict[str, float]  # of the labels in the training part

    @property
    def majority(self) -> str:
        """The most frequent label of the training part."""
        return min(self.frequencies, key=lambda label: (-self.frequencies[label], label))


def page(results: Results, read: gallery.Read) -> str:
    """One HTML page. The same bytes for the same arguments.

    Args:
        results: what it shows.
        read: returns the pixels of images by their names, (n, size, size, 3) uint8.
    """
    predictions = results.predictions
    correct = (predictions["label"] == predictions["prediction"]).to_numpy()
    figures = [
        # A solved head has one row.
        *(learning_curves(results.curves) if len(results.curves) > 1 else []),
        calibration_curve(predictions["probability"].to_numpy(), correct),
    ]
    *curves, calibration = zip(figures, draw(figures), strict=True)
    labels_with_images = list(results.labels.loc[results.labels["support"] > 0, "label"])
    budget = gallery.Budget(read)
    return render(
        TEMPLATE,
        results=results,
        values=results.parameters,
        flat_parameters=flatten(results.parameters).items(),
        side=gallery.SIDE,
        videos=Scorer(predictions).videos,
        alpha=bootstrap.ALPHA,
        labels=results.labels.to_dict("records"),
        confusion=_confusion(results),
        confused=_most_confused(results, correct),
        never_found=list(
            results.labels.loc[(results.labels["support"] > 0) & (results.labels["recall"] == 0), "label"]
        ),
        curves=curves,
        calibration=calibration,
        copies=gallery.pairs(results.pairs.head(MAX_PAIRS), budget),
        suspicious=gallery.suspicious(results.suspicious, budget),
        pictures=examples(predictions, labels_with_images, results.evidence, budget),
        unit="video" if results.annotate["layout"] == "mpii" else "group" if results.annotate["videos"] else "image",
        **_scores(results),
    )


def _scores(results: Results) -> dict[str, Any]:
    """The model's scores beside those of always predicting the most frequent label, and the difference."""
    baseline = results.predictions.assign(prediction=results.majority)
    # Always the same probabilities: those of the labels in the training part.
    labels, _ = probabilities_of(baseline)
    baseline[[OF + label for label in labels]] = [results.frequencies.get(label, 0.0) for label in labels]
    baseline = baseline.copy()  # in one piece: pandas is slow with a table of many
    baseline_scores = bootstrap.intervals(baseline)
    scores = [
        {
            "name": text,
            "value": results.evaluation[name],
            "interval": results.evaluation[f"{name}_interval"],
            "baseline": baseline_scores[name].value,
            "baseline_interval": baseline_scores[name][1:],
        }
        for name, text in METRICS.items()
    ]
    return {"scores": scores, "gain": bootstrap.differences(baseline, results.predictions)["macro_f1"]}


def _confusion(results: Results) -> dict[str, Any]:
    names = list(results.labels["label"][:MAX_CONFUSED])
    counts = pd.crosstab(results.predictions["label"], results.predictions["prediction"])
    totals = counts.sum(axis=1).reindex(names, fill_value=0).to_numpy()
    table = counts.reindex(index=names, columns=names, fill_value=0).to_numpy()
    rows = [
        [{"count": int(count), "share": round(float(count / total), 2)} if count else {"count": 0} for count in row]
        for row, total in zip(table, totals, strict=True)
    ]
    return {"names": names, "rows": rows, "omitted": len(results.labels) - len(names)}


def _most_confused(results: Results, correct: np.ndarray) -> list[dict[str, Any]]:
    """The pairs of labels with most mistakes: label, prediction, times, and images of that label."""
    pairs = results.predictions[~correct].groupby(["label", "prediction"]).size().reset_index(name="times")
    pairs = pairs.sort_values(["times", "label", "prediction"], ascending=[False, True, True]).head(MAX_FAILURES)
    pairs = pairs.merge(results.labels[["label", "support"]], on="label")
    return [{str(key): value for key, value in row.items()} for row in pairs.to_dict("records")]
