"""A trained model on the test part -> models/MODEL/predictions.csv, which evaluate scores.

Where the backbone is as it was, from its features, which are there: a sweep over heads never runs it again.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common import parameters, problem
from stages.common.backend import device, keras
from stages.common.chunks import Rows
from stages.common.files import lock, new_file, write_csv
from stages.common.networks import TAKES, after_backbone
from stages.common.parameters import MODELS, Pretrained, Scratch
from stages.common.parts import SPLIT, choose, labels_of, read_split
from stages.common.predictions import PREDICTIONS
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.resuming import code, resumable, state
from stages.common.saving import load

RESIZED = Path("data/resized")
FEATURES = Path("data/features")
MODEL = "models/{}/model.keras"
BATCH = 32


def predict(
    model: keras.Model, labels: list[str], rows: Rows, test: pd.DataFrame, done: Path, stage: str
) -> pd.DataFrame:
    """Predict every image of `test` (columns image, video, label), going on from what is in the folder `done`.

    Args:
        model: rows to probabilities, (n, labels).

    Returns:
        One row an image: image, video, label, prediction, probability, and the probability of each label.
    """
    images = list(test["image"])
    batches = {done / f"{start:06d}.npz": images[start : start + BATCH] for start in range(0, len(images), BATCH)}
    left = {path: batch for path, batch in batches.items() if not path.exists()}
    if len(left) < len(batches):
        print(f"{stage}: going on: {len(batches) - len(left)} of {len(batches)} batches are there already")
    waiting = sum(map(len, left.values()))
    with progress(len(images), stage, "image", initial=len(images) - waiting) as bar:
        for path, batch in left.items():
            predicted = np.asarray(model.predict_on_batch(rows.read(batch)))
            with new_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, predicted)  # not np.save: it does not notice a full disk
            bar.update(len(batch))
    probabilities = np.concatenate([_load(path) for path in batches]).astype(np.float64)
    table = test[["image", "video", "label"]].reset_index(drop=True)
    table["prediction"] = np.array(labels)[probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1)
    return pd.concat([table, pd.DataFrame(probabilities, columns=labels)], axis=1).round(6)


def _load(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        predicted: np.ndarray = stored["arr_0"]
        return predicted


def main() -> None:
    values = parameters.load()
    if len(sys.argv) != 2 or sys.argv[1] not in MODELS:
        raise Problem(f"usage: python -m stages.infer {{{','.join(MODELS)}}}")
    name = sys.argv[1]
    with lock(f"infer-{name}"):
        _run(name, getattr(values, name))


def _run(name: str, section: Scratch | Pretrained) -> None:
    stage, path, out = f"infer-{name}", Path(MODEL.format(name)), Path(PREDICTIONS.format(name))
    model, labels = load(path)
    split = read_split()
    if (known := labels_of(split)) != labels:
        different = ", ".join(sorted(set(known) ^ set(labels))[:5])
        raise Problem(
            f"{path} has other labels than {SPLIT} ({len(labels)} and {len(known)}; different: {different}); expected the "
            "same: train again with dvc repro"
        )
    if isinstance(section, Pretrained) and not section.fine_tune_epochs:
        folder, dataset = FEATURES / name, TAKES[section.head]
        model = after_backbone(model, section.head)
    else:
        folder, dataset = RESIZED, "pixels"
    rows = Rows(folder, dataset)
    if model.input_shape[1:] != rows.shape:
        raise Problem(
            f"{path} takes {dataset} of {model.input_shape[1:]}, {folder} has {rows.shape}; train again with dvc repro"
        )
    test = choose(split, "test", rows)
    print(f"{stage}: {dataset} of {len(test)} test images, on {device()}")
    inputs = state([path, *sorted(folder.iterdir())])
    with resumable(out, code(), device(), dataset, test.to_csv(), inputs) as done:
        write_csv(out, predict(model, labels, rows, test, done, stage))


if __name__ == "__main__":
    problem.run(main)
