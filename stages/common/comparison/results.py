"""The results that one revision has."""

import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.common.evaluation import bootstrap
from stages.common.evaluation.predictions import COLUMNS, occurring_labels, parse_predictions
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.revisions import Reader

COSTS = {"seconds": float, "parameters": int}


@dataclass(frozen=True)
class Result:
    """The results of one revision; the dictionaries are the content of its JSON files."""

    name: str
    evaluation: dict[str, Any]
    training: dict[str, Any]
    labels: pd.DataFrame  # label, f1, support
    predictions: pd.DataFrame | None  # image, video, label, prediction, probability
    missing: str = ""  # why there are no predictions


def read_result(name: str, read: Reader) -> Result:
    """The results of one revision.

    Args:
        name: of the revision, as the user calls it.
        read: returns the text of its files.

    Raises:
        UserError: the revision has no scores, files that this project does not write, or predictions of other scores.
    """
    try:
        evaluation, training = json.loads(read(paths.EVALUATION)), json.loads(read(paths.TRAINING))
        training = {key: kind(training[key]) for key, kind in COSTS.items() if key in training}
        if not all(map(math.isfinite, training.values())):
            raise ValueError(f"{paths.TRAINING} has a number that is not finite")
        labels = pd.read_csv(io.StringIO(read(paths.LABEL_SCORES)), keep_default_na=False, dtype={"label": str})[
            ["label", "f1", "support"]
        ]
        if not (labels["f1"].between(0, 1).all() and (labels["support"] >= 0).all() and labels["label"].is_unique):
            raise ValueError(f"{paths.LABEL_SCORES} has scores that are not from 0 to 1, or a label twice")
        known = [_score(evaluation[metric]) for metric in bootstrap.METRICS]
        path = paths.predictions(evaluation["model"])
    except FileNotFoundError as error:
        raise UserError(
            f"{name} has no {error.filename or error}; expected a revision with the results of dvc repro"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{name}: its metrics or {paths.LABEL_SCORES} are not as dvc repro writes them: {error!r}"
        ) from error
    try:
        predictions = parse_predictions(io.StringIO(read(path)))[COLUMNS]
        if predictions.empty:
            raise ValueError("no predictions in it")
        if not (predictions["probability"].between(0, 1).all() and predictions["image"].is_unique):
            raise ValueError("probabilities that are not from 0 to 1, or an image twice")
    except FileNotFoundError as error:
        return Result(name, evaluation, training, labels, None, f"{path}: {error.strerror or 'no such file'}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: {path} is not as dvc repro writes it: {error!r}") from error
    counts = bootstrap.tally(predictions, occurring_labels(predictions)).sum(axis=0)
    if not np.allclose(bootstrap.scores(counts), known, rtol=0, atol=1e-5):
        raise UserError(f"{name}: {paths.EVALUATION} does not belong to {path}; run dvc repro there first")
    return Result(name, evaluation, training, labels, predictions)


def _score(value: Any) -> float:
    """A score of evaluation.json. Raises a `ValueError` unless it is a number from 0 to 1."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a score is {value!r}; expected a number from 0 to 1")
    return value
