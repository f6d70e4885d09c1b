"""The chosen model's training, at paths that are the same for every model: dvc compares by path."""

import json
import shutil
from pathlib import Path
from typing import Any

from stages.common import parameters, problem
from stages.common.files import lock, new_file, write_json
from stages.common.problem import Problem

METRICS = Path("metrics/training.json")
CURVES = Path("plots/learning_curves.csv")


def training(model: str, train: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
    """What training cost.

    Args:
        model: its name.
        train: what the train stage measured.
        features: what the features stage measured, empty where the model has none.

    Returns:
        `seconds` counts the frozen backbone's one pass over the images and all epochs, start-up apart;
        `seconds_per_epoch` and `images_per_second` the epochs alone.
    """
    seconds, epochs = train["seconds"], train["epochs"]
    return {
        "model": model,
        "seconds": round(seconds + features.get("seconds", 0), 1),
        "seconds_per_epoch": round(seconds / epochs, 2),
        "epochs": epochs,
        "images_per_second": round(train["images"] / seconds, 1) if seconds else 0.0,
        "parameters": train["parameters"],
        "device": train["device"],
    }


@lock("report")
def main() -> None:
    model = parameters.load().model
    timing = Path(f"models/{model}/timing")
    stages = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(timing.glob("*.json"))}
    if "train" not in stages:
        raise Problem(f"{timing} holds no train.json; run dvc repro to train {model}")
    write_json(METRICS, training(model, stages["train"], stages.get("features", {})))
    with new_file(CURVES) as temporary:
        shutil.copyfile(f"plots/train-{model}.csv", temporary)
    print(f"report: {METRICS} and {CURVES} are those of {model}")


if __name__ == "__main__":
    problem.run(main)
