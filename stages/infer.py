"""A trained model on the test part: models/MODEL/predictions.csv, which evaluate scores.

If the backbone is as it was, it predicts from the stored features: a sweep over heads never runs the backbone again.
"""

from pathlib import Path

import numpy as np

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import images_of, labels_of, read_split
from stages.common.evaluation.predictions import prediction_table
from stages.common.networks.serialization import head_of, load
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.arguments import model_argument
from stages.common.runtime.backend import device, keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import new_file, write_csv
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import MODELS, Pretrained, Scratch
from stages.common.runtime.progress import progress
from stages.common.runtime.resuming import code, fingerprint, resumable, unfinished

BATCH = 32


def probabilities(model: keras.Model, rows: Rows, images: list[str], folder: Path, stage: str) -> np.ndarray:
    """The model's probabilities for `images`, (images, labels) float64, resuming from the batches in `folder`."""
    batches = {folder / f"{start:06d}.npz": images[start : start + BATCH] for start in range(0, len(images), BATCH)}
    left = unfinished(batches, stage, "batches", lambda path: _check(path, len(batches[path]), model))
    with progress(len(images), stage, "image", initial=len(images) - sum(len(batches[path]) for path in left)) as bar:
        for path in left:
            values = np.asarray(model.predict_on_batch(rows.read(batches[path])))
            with new_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, values)  # not np.save: it does not notice a full disk
            bar.update(len(values))
    return np.concatenate([_load(path) for path in batches]).astype(np.float64)


def _check(path: Path, images: int, model: keras.Model) -> None:
    """Raise a `ValueError` unless a finished batch has the probabilities of so many images."""
    if (shape := _load(path).shape) != (images, model.output_shape[-1]):
        raise ValueError(f"an array of {shape}")


def _load(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        values: np.ndarray = stored["arr_0"]
        return values


def main() -> None:
    name = model_argument("infer", MODELS)
    with lock(f"infer-{name}"):
        _run(name, getattr(parameters.load(), name))


def _run(name: str, section: Scratch | Pretrained) -> None:
    stage, path, out = f"infer-{name}", paths.model_file(name), paths.predictions(name)
    model, labels = load(path)
    split = read_split()
    _check_labels(labels, labels_of(split), path)
    if isinstance(section, Pretrained) and not section.fine_tune_epochs:
        folder, dataset = paths.features(name), str(section.features)
        model = head_of(model)
    else:
        folder, dataset = paths.RESIZED, "pixels"
    rows = Rows(folder, dataset)
    if model.input_shape[1:] != rows.shape:
        raise UserError(
            f"{path} takes {dataset} of {model.input_shape[1:]}, {folder} has {rows.shape}; train again with dvc repro"
        )
    test = images_of(split, "test", rows)
    print(f"{stage}: {dataset} of {len(test)} test images, on {device()}")
    inputs = fingerprint([path, *sorted(folder.iterdir())])
    with resumable(out, code(), device(), dataset, test.to_csv(), inputs) as pieces:
        predicted = probabilities(model, rows, list(test["image"]), pieces, stage)
        write_csv(out, prediction_table(test[["image", "video", "label"]], predicted, labels))


def _check_labels(labels: list[str], expected: list[str], path: Path) -> None:
    if labels != expected:
        different = ", ".join(sorted(set(expected) ^ set(labels))[:5])
        raise UserError(
            f"{path} has other labels than {paths.SPLIT} ({len(labels)} and {len(expected)}; different: {different}); "
            "expected the same: train again with dvc repro"
        )


if __name__ == "__main__":
    errors.run(main)
