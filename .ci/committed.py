"""Are the committed results those that this machine reproduces? For pull_request.py.

A linear head is solved, so its scores are the same on every processor. For other models: if the predictions are reproduced
bit by bit, so must be everything computed from them. On another processor the predictions may differ. Then the committed
files must agree with each other, and with the reproduced ones within a tolerance.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.common.evaluation.metrics import METRICS, OF_LABELS, Scorer
from stages.common.evaluation.summary import label_scores
from stages.common.runtime import paths
from stages.common.runtime.plain_yaml import parse_yaml
from stages.common.runtime.tracked import recorded_md5

# What another run of the same model does not reproduce: all of it is time, or where it was spent.
TIME = ("seconds", "seconds_per_epoch", "images_per_second", "device")
# Another processor rounds differently, which changes the results of models that are trained by epochs (docs/guarantees.md).
TOLERANCE = 0.03
LOOSE = 0.1  # for what varies more than the scores: ends of intervals, calibration, the validation score
# Figures of training may differ in their last digits although the predictions, which are rounded, do not.
ROUNDING = 0.001
MAX_TIME = 1e9  # no honest figure of `TIME` is larger
# The same on every processor.
EXACT = (paths.ANNOTATE_METRICS, paths.SPLIT_METRICS, paths.RESIZE_METRICS, paths.AUDIT_METRICS)
# None if every test image has a near-copy.
WITHOUT_COPIES = "macro_f1_without_near_copies"

Read = Callable[[Path], str]


class Checked(NamedTuple):
    """What is wrong, one sentence each, and whether the scores had to be equal."""

    wrong: list[str]
    exact: bool


def check(committed: Read, reproduced: Read, model: str, solved: bool) -> Checked:
    """Compare all results of the chosen model, but for `TIME`.

    Args:
        committed: returns the text of a file of the commit.
        reproduced: returns the text of the file that this machine made.
        model: the chosen one.
        solved: whether it is a linear head on frozen features.

    Raises:
        ValueError, KeyError, OSError: a file is missing or not as the stages write it.
    """
    exact = solved or _predictions_md5(committed, model) == _predictions_md5(reproduced, model)
    wrong = [f"`{path}` differs" for path in EXACT if committed(path) != reproduced(path)]
    ours, theirs = (_numbers(read) for read in (committed, reproduced))
    wrong += _different(ours, theirs, ROUNDING if exact else TOLERANCE)
    wrong += _different_curves(committed, reproduced, model, exact)
    if exact:
        made = (paths.EVALUATION, paths.LABEL_SCORES, paths.CONFUSION)
        wrong += [f"`{path}` differs" for path in made if committed(path) != reproduced(path)]
    else:
        wrong += _contradictions(committed)
        supports, supports_here = (
            pd.read_csv(io.StringIO(read(paths.LABEL_SCORES)), keep_default_na=False)[["label", "support"]]
            for read in (committed, reproduced)
        )
        wrong += [f"`{paths.LABEL_SCORES}` has other labels"] if not supports.equals(supports_here) else []
    return Checked(wrong, exact)


def _different_curves(committed: Read, reproduced: Read, model: str, exact: bool) -> Iterator[str]:
    if committed(paths.LEARNING_CURVES) != committed(paths.curves(model)):
        yield f"`{paths.LEARNING_CURVES}` is not `{paths.curves(model)}`"
    ours, theirs = (pd.read_csv(io.StringIO(read(paths.LEARNING_CURVES))) for read in (committed, reproduced))
    numbers, numbers_here = (table.select_dtypes("number") for table in (ours, theirs))
    if list(ours) != list(theirs) or list(numbers) != list(numbers_here):
        yield f"`{paths.LEARNING_CURVES}` has other columns"
    elif not np.isfinite(numbers.to_numpy()).all():
        yield f"`{paths.LEARNING_CURVES}` has a number that is not finite"
    elif exact and not (numbers.shape == numbers_here.shape and np.allclose(numbers, numbers_here, 0, ROUNDING)):
        yield f"`{paths.LEARNING_CURVES}` differs"


def _predictions_md5(read: Read, model: str) -> str:
    infer = parse_yaml(read(paths.MODELS_LOCK))["stages"][f"infer-{model}"]
    return recorded_md5(infer, "outs", paths.predictions(model))


def _numbers(read: Read) -> dict[str, Any]:
    """Every figure of evaluation.json and training.json by name, but for `TIME`.

    Raises:
        ValueError: one is not a finite number.
    """
    found: dict[str, Any] = {}
    for path in (paths.EVALUATION, paths.TRAINING):
        values = json.loads(read(path))
        if not isinstance(values, dict):
            raise ValueError(f"{path} is not a mapping")
        for name, value in values.items():
            if name in TIME:
                if name != "device" and not 0 <= value < MAX_TIME:
                    raise ValueError(f"{name} is {value!r}; expected a number from 0")
            else:
                values = value if isinstance(value, list) else [value]
                found |= {f"{name}{f' {place}' if len(values) > 1 else ''}": each for place, each in enumerate(values)}
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name != "model" and not number and not (name == WITHOUT_COPIES and value is None):
            raise ValueError(f"{name} is {value!r}; expected a finite number")
    return found


def _different(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> Iterator[str]:
    if ours.keys() != theirs.keys():
        yield f"other names of figures: {', '.join(sorted(ours.keys() ^ theirs.keys()))}"
        return
    for name, value in ours.items():
        # Early stopping is at another epoch where rounding differs.
        if name in ("epochs", "best_epoch") and tolerance == TOLERANCE:
            continue
        score = isinstance(theirs[name], float) and value is not None
        allowed = LOOSE if tolerance == TOLERANCE and name not in (*METRICS, WITHOUT_COPIES) else tolerance
        same = abs(value - theirs[name]) <= allowed and 0 <= value <= 1 if score else value == theirs[name]
        if not same:
            yield f"`{name}`: {value} committed, {theirs[name]} reproduced"


def _confusion(read: Read) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(read(paths.CONFUSION)), keep_default_na=False, dtype=str)


def _contradictions(read: Read) -> Iterator[str]:
    """Where the committed files do not agree: all scores follow from the labels and predictions of the test images."""
    evaluation, table = json.loads(read(paths.EVALUATION)), _confusion(read)
    truth = table["label"].to_numpy()
    scorer = Scorer(table.assign(image=table.index.astype(str), video=""))
    (values,) = scorer(np.ones((1, scorer.videos)))
    scores = dict(zip(OF_LABELS, map(float, values), strict=True)) | {"test_images": len(table)}
    for name, value in scores.items():
        if abs(evaluation[name] - value) > 1e-6:
            yield f"`{name}` is {evaluation[name]}, but {value:.6f} by `{paths.CONFUSION}`"
        elif name != "test_images":
            low, high = evaluation[f"{name}_interval"]
            if not 0 <= low <= value + 1e-6 <= high + 2e-6 <= 1 + 2e-6:
                yield f"`{name}_interval` is {low} to {high}, without {value:.6f}"
    if not evaluation["test_images_with_near_copies"] and evaluation[WITHOUT_COPIES] != evaluation["macro_f1"]:
        yield f"`{WITHOUT_COPIES}` is not `macro_f1`, though no test image has a near-copy"
    labels = [row[0] for row in csv.reader(io.StringIO(read(paths.LABEL_SCORES)))][1:]
    expected = label_scores(table, labels).to_csv(index=False, lineterminator="\n")
    if not set(truth) <= set(labels) or expected != read(paths.LABEL_SCORES):
        yield f"`{paths.LABEL_SCORES}` is not made of `{paths.CONFUSION}`"
    curves = pd.read_csv(io.StringIO(read(paths.LEARNING_CURVES)))["validation_macro_f1"]
    training = json.loads(read(paths.TRAINING))
    # That of the best score, or with patience 0 the last one.
    best = training["best_epoch"] - 1
    if (
        best not in (int(curves.to_numpy().argmax()), len(curves) - 1)
        or training["epochs"] < len(curves)
        or abs(training["validation_macro_f1"] - curves[best]) > 2e-6
    ):
        yield f"`{paths.TRAINING}` and `{paths.LEARNING_CURVES}` have other best epochs"
