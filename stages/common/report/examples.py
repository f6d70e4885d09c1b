"""The mistakes and hits of the results' page, with what the surest and the least sure of them rest on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.common.explanation.examples import SHOWN, mistakes_and_hits
from stages.common.explanation.overlay import overlay
from stages.common.report.gallery import Budget

SHOWN_OF_LABEL = 4


class Evidence(NamedTuple):
    """Where in an image the evidence for two labels is, (height, width) float each."""

    predicted: np.ndarray
    true: np.ndarray


def examples(
    predictions: pd.DataFrame, labels: list[str], evidence: Mapping[str, Evidence], budget: Budget
) -> dict[str, Any]:
    """As many pictures as there is room for: those over all labels first, then label by label.

    Args:
        predictions: a table with the columns image, video, label, prediction and probability.
        labels: those with images, in the order of the page.
        evidence: by image; empty for networks without heat maps.
        budget: what it has left.

    Returns:
        mistakes and hits, lists of pictures; groups, one per label with its own mistakes and hits; and omitted, the number
        of labels without a group.
    """
    mistakes, hits = mistakes_and_hits(predictions)
    shown: dict[str, Any] = {
        kind: [_with_evidence(picture, evidence, budget) for picture in budget.gallery(rows, SHOWN)]
        for kind, rows in (("mistakes", mistakes), ("hits", hits))
    }
    hit = predictions["label"] == predictions["prediction"]
    groups = []
    for label in labels:
        same = predictions["label"] == label
        group = {
            "label": label,
            "images": int(same.sum()),
            "correct": int((same & hit).sum()),
            "mistakes": budget.gallery(mistakes[mistakes["label"] == label], SHOWN_OF_LABEL),
            "hits": budget.gallery(hits[hits["label"] == label], SHOWN_OF_LABEL),
        }
        if budget.left < 0:
            break
        groups.append(group)
    return {**shown, "groups": groups, "omitted": len(labels) - len(groups)}


def _with_evidence(picture: dict[str, Any], evidence: Mapping[str, Evidence], budget: Budget) -> dict[str, Any]:
    """A picture, and after it those of the evidence for the predicted label and, if it is another one, for the true label."""
    heat = evidence.get(str(picture["image"]))
    if heat is None:
        return {**picture, "evidence": []}
    of = {picture["prediction"]: heat.predicted, picture["label"]: heat.true}
    pixels = budget.pixels(str(picture["image"]))
    drawn = [{"label": label, "data": budget.drawn(overlay(pixels, values))} for label, values in of.items()]
    return {**picture, "evidence": drawn}
