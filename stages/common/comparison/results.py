"""The results that revisions have: of the test part, or out of fold."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from stages.common.evaluation.metrics import DIGITS, METRICS, Scorer, tally
from stages.common.evaluation.predictions import occurring_labels, parse_predictions, probabilities_of
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import flatten
from stages.common.runtime.plain_yaml import parse_yaml
from stages.common.runtime.revisions import Reader
from stages.common.runtime.tracked import recorded_md5

COSTS = {"seconds": float, "parameters": int}
# What is wrong with a file that was edited, or written by another program.
WRONG = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Result:
    """The results of one revision, or the means of several."""

    name: str
    model: str
    scores: dict[str, float]  # those of `METRICS` that it has
    training: dict[str, Any]  # seconds and parameters, if known
    labels: pd.DataFrame  # label, f1, support
    # For each seed the tables of predictions of its repeats, all of the same images; none: `missing` says why.
    seeds: Sequence[Sequence[pd.DataFrame]] = ()
    missing: str = ""
    folds: dict[str, Any] = field(default_factory=dict)  # how out-of-fold predictions were made

    @property
    def tables(self) -> list[pd.DataFrame]:
        """All predictions."""
        return [table for repeats in self.seeds for table in repeats]


def read_result(name: str, read: Reader) -> Result:
    """The results of one revision on the test part.

    Args:
        name: of the revision, as the user calls it.
        read: returns the text of its files.

    Raises:
        UserError: the revision has no scores, scores of an older model, files that this project does not write, or
            predictions of other scores.
    """
    refuse_stale_scores(name, read)
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
        scores, model = _scores(evaluation), str(evaluation["model"])
    except FileNotFoundError as error:
        raise UserError(
            f"{name} has no {error.filename or error}; expected a revision with the results of dvc repro"
        ) from error
    except WRONG as error:
        raise UserError(
            f"{name}: its metrics or {paths.LABEL_SCORES} are not as dvc repro writes them: {error!r}"
        ) from error
    path = paths.predictions(model)
    try:
        predictions = _predictions(read, path)
    except FileNotFoundError as error:
        missing = f"{path}: {error.strerror or 'no such file'}"
        return Result(name, model, scores, training, labels, missing=missing)
    except WRONG as error:
        raise UserError(f"{name}: {path} is not as dvc repro writes it: {error!r}") from error
    found = _mean_scores([predictions])
    _check(name, found, scores, paths.EVALUATION, path)
    return Result(name, model, found, training, labels, [[predictions]])


def refuse_stale_scores(name: str, read: Reader) -> None:
    """Raise a `UserError` if a revision's scores are not those of its model: its experiment ran cross-validate alone.

    A revision without the entries in question is not refused.
    """
    try:
        parameters = parse_yaml(read(paths.PARAMETERS))
        locks = (paths.MAIN_LOCK, paths.MODELS_LOCK)
        stages = {key: value for lock in locks for key, value in parse_yaml(read(lock))["stages"].items()}
        model = str(parameters["model"])
        evaluated = stages["evaluate"]["params"][str(paths.PARAMETERS)]["model"]
        train, infer = stages[f"train-{model}"], stages[f"infer-{model}"]
        files = (paths.model_file(model), train, infer), (paths.predictions(model), infer, stages["evaluate"])
        stale = evaluated != model or any(
            recorded_md5(maker, "outs", path) != recorded_md5(reader, "deps", path) for path, maker, reader in files
        )
    except (FileNotFoundError, *WRONG):
        return  # what is wrong is said by those who need it
    if stale:
        raise UserError(
            f"{name}: its scores on the test part are of another model than its parameters say: only other stages have run; "
            "run dvc repro there, or cross-validate both sides"
        )


def read_out_of_fold(name: str, read: Reader) -> Result | str:
    """The out-of-fold results of one revision, or why it has none that belong to its model.

    Args:
        name: of the revision, as the user calls it.
        read: returns the text of its files.

    Raises:
        UserError: it has files that this project does not write, or predictions of other scores.
    """
    try:
        parameters = parse_yaml(read(paths.PARAMETERS))
        model = str(parameters["model"])
        locked = parse_yaml(read(paths.MODELS_LOCK))["stages"]
        path, made_of = paths.out_of_fold(model), paths.model_file(model)
        if "cross-validate" not in locked:
            return "it was not cross-validated"
        stage = locked["cross-validate"]
        used = stage["params"][str(paths.PARAMETERS)]
        if used["model"] != model or f"train-{model}" not in locked:
            return f"the stage cross-validate has not run for {model}"
        if recorded_md5(stage, "deps", made_of) != recorded_md5(locked[f"train-{model}"], "outs", made_of):
            return "the stage cross-validate has not run since the model was trained"
        folds = {key: parameters[key] for key in ("cross_validation", "split")}
        if any(used[key] != value for key, value in folds.items()):
            return "the stage cross-validate has not run since its parameters were changed"
        predictions, scores = _predictions(read, path), _scores(json.loads(read(paths.CROSS_VALIDATION)))
        repeats = [table for _, table in predictions.groupby("repeat")]
        found = _mean_scores(repeats)
    except FileNotFoundError as error:
        return f"{error.filename}: {error.strerror}"
    except WRONG as error:
        raise UserError(
            f"{name}: {paths.MODELS_LOCK} or its files are not as dvc repro writes them: {error!r}"
        ) from error
    _check(name, found, scores, paths.CROSS_VALIDATION, path)
    return Result(name, model, found, {}, _mean_labels(repeats), [repeats], folds=flatten(folds))


def mean_of(results: Sequence[Result]) -> Result:
    """The means of results that differ in their seeds."""
    if len(results) == 1:
        return results[0]
    shared = [metric for metric in METRICS if all(metric in result.scores for result in results)]
    costs = [key for key in COSTS if all(key in result.training for result in results)]
    labels = pd.concat(result.labels for result in results)
    missing = [result.missing for result in results if result.missing]
    return Result(
        name=", ".join(result.name for result in results),
        model=results[0].model,
        scores={metric: fmean(result.scores[metric] for result in results) for metric in shared},
        training={key: COSTS[key](fmean(result.training[key] for result in results)) for key in costs},
        labels=labels.groupby("label", as_index=False)[["f1", "support"]].mean(),
        seeds=[] if missing else [repeats for result in results for repeats in result.seeds],
        missing="; ".join(missing),
        folds=results[0].folds,
    )


def _predictions(read: Reader, path: Path) -> pd.DataFrame:
    predictions = parse_predictions(io.StringIO(read(path)))
    repeats = predictions["repeat"] if "repeat" in predictions else pd.Series(1, predictions.index)
    if predictions.empty:
        raise ValueError("no predictions in it")
    if (
        not predictions["probability"].between(0, 1).all()
        or predictions.groupby(repeats)["image"].value_counts().max() > 1
    ):
        raise ValueError("probabilities that are not from 0 to 1, or an image twice")
    _, probabilities = probabilities_of(predictions)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities of labels that are not from 0 to 1")
    return predictions


def _scores(values: dict[str, Any]) -> dict[str, float]:
    """The scores of a file of metrics; those of older revisions are fewer."""
    found = {metric: values[metric] for metric in METRICS if metric in values}
    if not found.keys() >= {"macro_f1", "weighted_f1", "accuracy"}:
        raise KeyError("macro_f1, weighted_f1 or accuracy")
    for value in found.values():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"a score is {value!r}; expected a number from 0 to 1")
    return found


def _mean_scores(runs: Sequence[pd.DataFrame]) -> dict[str, float]:
    scorers = [Scorer(table) for table in runs]
    mean = np.mean([scorer(np.ones((1, scorer.videos)))[0] for scorer in scorers], axis=0)
    return dict(zip(scorers[0].names, map(float, mean), strict=True))


def _mean_labels(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    names = occurring_labels(*runs)
    correct, images, predicted = np.stack([tally(table, names).sum(axis=0) for table in runs], axis=1)
    f1 = 2 * correct / np.maximum(images + predicted, 1)
    return pd.DataFrame({"label": names, "f1": f1.mean(axis=0), "support": images[0]})


def _check(name: str, found: dict[str, float], stated: dict[str, float], file: Path, path: Path) -> None:
    tolerance = {metric: max(1e-5, 10.0 ** -DIGITS[metric]) for metric in METRICS}
    if any(abs(found[metric] - stated[metric]) > tolerance[metric] for metric in found.keys() & stated.keys()):
        raise UserError(f"{name}: {file} does not belong to {path}; run the stage that writes them there first")
