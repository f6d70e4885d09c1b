"""The chosen model's training at paths that are the same for every model, as dvc compares by path; and its results as a page."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common import page, parameters, problem
from stages.common.chunks import Rows
from stages.common.files import lock, new_file, write_json
from stages.common.parts import read_split
from stages.common.predictions import PREDICTIONS, read_predictions
from stages.common.problem import Problem

METRICS = Path("metrics/training.json")
CURVES = Path("plots/learning_curves.csv")
PAGE = Path("plots/report.html")


def training(train: dict[str, Any], features: dict[str, Any], validation: dict[str, Any]) -> dict[str, Any]:
    """What training cost, and led to.

    Args:
        train: what the train stage measured.
        features: what the features stage measured, empty where the model has none.
        validation: the best epoch and its macro F1 on the validation images.

    Returns:
        `seconds` counts the frozen backbone's one pass over the images and all epochs, start-up apart;
        `seconds_per_epoch` and `images_per_second` the epochs alone.
    """
    seconds, epochs = train["seconds"], train["epochs"]
    return {
        "seconds": round(seconds + features.get("seconds", 0), 1),
        "seconds_per_epoch": round(seconds / epochs, 2),
        "epochs": epochs,
        "images_per_second": round(train["images"] / seconds, 1) if seconds else 0.0,
        "parameters": train["parameters"],
        "device": train["device"],
        **validation,
    }


def commit() -> str:
    """The commit that this runs in, and whether code or parameters differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--", "params.yaml", "dvc.yaml", "data/dvc.yaml", "models/dvc.yaml", "stages"
        )
        return git("rev-parse", "--short=12", "HEAD") + (", with changes that are not committed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "none: not run in a git repository with commits"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _parameters(values: parameters.Parameters) -> dict[str, Any]:
    chosen = {
        "data": values.data,
        "target": values.target,
        "model": values.model,
        "weights": values.weights,
        "seed": values.seed,
    }
    sections = {"split": values.split, "resize": values.resize, values.model: getattr(values, values.model)}
    return chosen | {name: section.model_dump() for name, section in sections.items()}


@lock("report")
def main() -> None:
    values = parameters.load()
    model = values.model
    timing = Path(f"models/{model}/timing")
    stages = {path.stem: _json(path) for path in sorted(timing.glob("*.json"))}
    if "train" not in stages:
        raise Problem(f"{timing} holds no train.json; run dvc repro to train {model}")
    validation = _json(Path(f"models/{model}/validation.json"))
    cost = training(stages["train"], stages.get("features", {}), validation)
    split = read_split()
    counts = split.loc[split["part"] == "train", "label"].value_counts()
    results = page.Results(
        parameters=_parameters(values),
        commit=commit(),
        annotate=_json(Path("metrics/annotate.json")),
        split=_json(Path("metrics/split.json")),
        resize=_json(Path("metrics/chunked-resize.json")),
        evaluation=_json(Path("metrics/evaluation.json")),
        training=cost,
        curves=pd.read_csv(f"plots/train-{model}.csv"),
        labels=pd.read_csv("plots/labels.csv", keep_default_na=False, dtype={"label": str}),
        predictions=read_predictions(Path(PREDICTIONS.format(model))),
        majority=min(counts[counts == counts.max()].index),
    )
    html = page.page(results, Rows(Path("data/resized"), "pixels").read)
    write_json(METRICS, cost)
    with new_file(CURVES) as temporary:
        shutil.copyfile(f"plots/train-{model}.csv", temporary)
    with new_file(PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"report: {METRICS} and {CURVES} are those of {model}; all results as a page: {PAGE}")


if __name__ == "__main__":
    problem.run(main)
