"""The chosen model on the test part: predictions of every image, and the scores that follow from them."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from stages.common import parameters, problem
from stages.common.backend import device, keras
from stages.common.chunks import Rows
from stages.common.files import lock, new_file, write_csv, write_json
from stages.common.parts import SPLIT, choose, labels_of, read_split
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.resuming import code, resumable, state
from stages.common.saving import load
from stages.common.scores import calibration_error, f1

RESIZED = Path("data/resized")
PREDICTIONS = Path("data/predictions.csv")
METRICS = Path("metrics/evaluation.json")
LABELS = Path("plots/labels.csv")
CONFUSION = Path("plots/confusion.csv")
BATCH = 32


def predict(model: keras.Model, labels: list[str], rows: Rows, test: pd.DataFrame, done: Path) -> pd.DataFrame:
    """Predict every image of `test` (columns image, video, label), going on from what is in the folder `done`.

    Returns:
        One row an image: image, video, label, prediction, probability, and the probability of each label.
    """
    images = list(test["image"])
    batches = {done / f"{start:06d}.npz": images[start : start + BATCH] for start in range(0, len(images), BATCH)}
    left = {path: batch for path, batch in batches.items() if not path.exists()}
    if len(left) < len(batches):
        print(f"evaluate: going on: {len(batches) - len(left)} of {len(batches)} batches are there already")
    waiting = sum(map(len, left.values()))
    with progress(len(images), "evaluate", "image", initial=len(images) - waiting) as bar:
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


def score(predictions: pd.DataFrame) -> dict[str, float | int]:
    """Macro and weighted F1, accuracy, calibration error and number of images.

    Args:
        predictions: a table with the columns label, prediction and probability.
    """
    truth, predicted = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
    return {
        "macro_f1": round(f1(truth, predicted, "macro"), 6),
        "weighted_f1": round(f1(truth, predicted, "weighted"), 6),
        "accuracy": round(float(accuracy_score(truth, predicted)), 6),
        "expected_calibration_error": round(
            calibration_error(predictions["probability"].to_numpy(), truth == predicted), 6
        ),
        "test_images": len(predictions),
    }


def report(predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each label, the most frequent first."""
    values = precision_recall_fscore_support(
        predictions["label"], predictions["prediction"], labels=labels, zero_division=0
    )
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "support"), values, strict=True))).round(6)
    table.insert(0, "label", labels)
    return table.sort_values(["support", "label"], ascending=[False, True])


@lock("evaluate")
def main() -> None:
    values = parameters.load()
    path = Path(f"models/{values.model}/model.keras")
    model, labels = load(path)
    split = read_split()
    if (known := labels_of(split)) != labels:
        different = ", ".join(sorted(set(known) ^ set(labels))[:5])
        raise Problem(
            f"{path} has other labels than {SPLIT} ({len(labels)} and {len(known)}; different: {different}); expected the "
            "same: train again with dvc repro"
        )
    rows = Rows(RESIZED, "pixels")
    if model.input_shape[1:] != rows.shape:
        raise Problem(
            f"{path} takes images of {model.input_shape[1:]}, {RESIZED} has {rows.shape}; train again with dvc repro"
        )
    test = choose(split, "test", rows)
    print(f"evaluate: {values.model}, on {device()}")
    inputs = state([path, *sorted(RESIZED.iterdir())])
    with resumable(PREDICTIONS, code(), device(), test.to_csv(), inputs) as done:
        write_csv(PREDICTIONS, predict(model, labels, rows, test, done))
        predictions = pd.read_csv(
            PREDICTIONS, keep_default_na=False, dtype={"image": str, "video": str, "label": str, "prediction": str}
        )
        scores = score(predictions)
        write_csv(LABELS, report(predictions, labels))
        write_csv(CONFUSION, predictions[["label", "prediction"]])
        write_json(METRICS, {"model": values.model, **scores})
    print(
        f"evaluate: macro F1 {scores['macro_f1']:.3f}, weighted F1 {scores['weighted_f1']:.3f}, "
        f"accuracy {scores['accuracy']:.3f} on {scores['test_images']} test images"
    )


if __name__ == "__main__":
    problem.run(main)
