"""The chosen model's training at paths that are the same for every model, as dvc compares by path; and the results as a page."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.audit.leak import read_pairs
from stages.common.dataset import chunks
from stages.common.dataset.splits import read_split
from stages.common.evaluation.predictions import read_predictions
from stages.common.report.examples import Evidence
from stages.common.report.page import Results, page
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.files import new_file, read_json, reading, write_json, write_text
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import Parameters, Section, SelfSupervised

# Columns of names.
TEXTS = ("label", "suggested", "image")


def training(train: dict[str, Any], before: list[dict[str, Any]], validation: dict[str, Any]) -> dict[str, Any]:
    """The cost and the result of training.

    Args:
        train: what the train stage measured.
        before: what the stages before it measured, if the model has any: features, pretrain.
        validation: the best epoch and its macro F1 on the validation images.

    Returns:
        `seconds` counts the frozen backbone's single pass over the images, or the encoder's epochs without labels, and all
        epochs, without start-up;
        `seconds_per_epoch` and `images_per_second` count the epochs alone.
    """
    seconds, epochs = train["seconds"], train["epochs"]
    return {
        "seconds": round(seconds + sum(stage["seconds"] for stage in before), 1),
        "seconds_per_epoch": round(seconds / epochs, 2),
        "epochs": epochs,
        "images_per_second": round(train["images"] / seconds, 1) if seconds else 0.0,
        "parameters": train["parameters"],
        "device": train["device"],
        **validation,
    }


def commit() -> str:
    """The current commit, and whether code or parameters differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", str(paths.PARAMETERS), *paths.PIPELINES, "stages")
        return git("rev-parse", "--short=12", "HEAD") + (", with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "none: not a git repository with commits"


def _shown_parameters(values: Parameters) -> dict[str, Any]:
    """The parameters that the results depend on: not those of other models or other data sets."""
    chosen = {
        "data": values.data,
        "target": values.target,
        "model": values.model,
        "weights": values.weights,
        "seed": values.seed,
    }
    sections: dict[str, Section] = {"split": values.split, "resize": values.resize, values.model: values.chosen}
    if isinstance(values.chosen, SelfSupervised):
        sections["pretrain"] = values.pretrain
    return chosen | {name: section.model_dump() for name, section in sections.items()}


def _results(values: Parameters, cost: dict[str, Any]) -> Results:
    split, curves = read_split(), paths.curves(values.model)
    shares = split.loc[split["part"] == "train", "label"].value_counts(normalize=True)
    with reading(curves):
        learning_curves = pd.read_csv(curves)
    return Results(
        parameters=_shown_parameters(values),
        synthetic=values.uses_sample,
        weights=values.initial_weights(values.model),
        commit=commit(),
        annotate=read_json(paths.ANNOTATE_METRICS),
        split=read_json(paths.SPLIT_METRICS),
        resize=read_json(paths.RESIZE_METRICS),
        audit=read_json(paths.AUDIT_METRICS),
        evaluation=read_json(paths.EVALUATION),
        training=cost,
        curves=learning_curves,
        labels=_table(paths.LABEL_SCORES),
        predictions=read_predictions(paths.predictions(values.model)),
        pairs=read_pairs(paths.NEAR_COPIES),
        suspicious=_table(paths.SUSPICIOUS_LABELS),
        evidence=_evidence(paths.heat_maps(values.model)),
        frequencies={str(label): float(share) for label, share in shares.items()},
    )


def _evidence(path: Path) -> dict[str, Evidence]:
    with reading(path), path.open("rb"):  # HDF5 says less plainly that a file is missing
        names, predicted = chunks.read(path, "predicted")
        _, true = chunks.read(path, "true")
    return {name: Evidence(*maps) for name, *maps in zip(names, predicted, true, strict=True)}


def _table(path: Path) -> pd.DataFrame:
    """A stage's CSV file; names of labels and images may be NA, 1 or 007."""
    with reading(path):
        return pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(TEXTS, str))


@lock("report")
def main() -> None:
    values = parameters.load()
    before = (paths.features_timing(values.model), paths.pretrain_timing(values.model))
    cost = training(
        read_json(paths.train_timing(values.model)),
        [read_json(path) for path in before if path.exists()],
        read_json(paths.validation(values.model)),
    )
    html = page(_results(values, cost), chunks.Rows(paths.RESIZED, "pixels").read)
    write_json(paths.TRAINING, cost)
    with new_file(paths.LEARNING_CURVES) as temporary:
        shutil.copyfile(paths.curves(values.model), temporary)
    write_text(paths.REPORT, html)
    print(
        f"report: {paths.TRAINING} and {paths.LEARNING_CURVES} are those of {values.model}; the page is {paths.REPORT}"
    )


if __name__ == "__main__":
    errors.run(main)
