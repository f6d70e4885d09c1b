"""A trained model on the test part: models/MODEL/predictions.csv, which evaluate scores.

If the backbone is as it was, it predicts from the stored features: a sweep over heads never runs the backbone again. A linear
head needs no Keras for that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import images_of, labels_of, read_split
from stages.common.evaluation.predictions import prediction_table
from stages.common.networks.model_file import load_linear_head
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.arguments import model_argument
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import MODELS, Pretrained, Scratch
from stages.common.runtime.progress import progress
from stages.common.runtime.resuming import check_array, code, fingerprint, load_array, resumable, save_array, unfinished

BATCH = 32


class Model(NamedTuple):
    """Rows, (n, *shape), to probabilities, (n, labels); where it computes, and the rows that it takes."""

    predict: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    labels: list[str]
    device: str
    folder: Path
    dataset: str


def probabilities(model: Model, rows: Rows, images: list[str], folder: Path, stage: str) -> np.ndarray:
    """The model's probabilities for `images`, (images, labels) float64, resuming from the batches in `folder`."""
    labels = len(model.labels)
    batches = {folder / f"{start:06d}.npz": images[start : start + BATCH] for start in range(0, len(images), BATCH)}
    left = unfinished(batches, stage, "batches", lambda path: check_array(path, (len(batches[path]), labels)))
    with progress(len(images), stage, "image", initial=len(images) - sum(len(batches[path]) for path in left)) as bar:
        for path in left:
            values = np.asarray(model.predict(rows.read(batches[path])))
            save_array(path, values)
            bar.update(len(values))
    return np.concatenate([load_array(path) for path in batches]).astype(np.float64)


def main() -> None:
    name = model_argument("infer", MODELS)
    with lock(f"infer-{name}"):
        _run(name, getattr(parameters.load(), name))


def _run(name: str, section: Scratch | Pretrained) -> None:
    stage, path, out = f"infer-{name}", paths.model_file(name), paths.predictions(name)
    model = _model(name, section, path)
    split = read_split()
    _check_labels(model.labels, labels_of(split), path)
    rows = Rows(model.folder, model.dataset)
    if model.shape != rows.shape:
        raise UserError(
            f"{path} takes {model.dataset} of {model.shape}, {model.folder} has {rows.shape}; train again with dvc repro"
        )
    test = images_of(split, "test", rows)
    print(f"{stage}: {model.dataset} of {len(test)} test images, on {model.device}")
    inputs = fingerprint([path, *sorted(model.folder.iterdir())])
    with resumable(out, code(), model.device, model.dataset, test.to_csv(), inputs) as pieces:
        predicted = probabilities(model, rows, list(test["image"]), pieces, stage)
        write_csv(out, prediction_table(test[["image", "video", "label"]], predicted, model.labels))


def _model(name: str, section: Scratch | Pretrained, path: Path) -> Model:
    """The model in `path`, or its head alone if the features of its backbone are stored."""
    if isinstance(section, Pretrained) and section.solved:
        head, labels = load_linear_head(path)
        return Model(head.probabilities, head.mean.shape, labels, "NumPy", paths.features(name), "pooled")
    # Imported here: it takes seconds, and a linear head does not need it.
    from stages.common.networks.serialization import head_of, load
    from stages.common.runtime.backend import device

    whole, labels = load(path)
    model, folder, dataset = whole, paths.RESIZED, "pixels"
    if isinstance(section, Pretrained) and not section.fine_tune_epochs:
        model, folder, dataset = head_of(whole), paths.features(name), section.features
    return Model(model.predict_on_batch, model.input_shape[1:], labels, device(), folder, dataset)


def _check_labels(labels: list[str], expected: list[str], path: Path) -> None:
    if labels != expected:
        different = ", ".join(sorted(set(expected) ^ set(labels))[:5])
        raise UserError(
            f"{path} has other labels than {paths.SPLIT} ({len(labels)} and {len(expected)}; different: {different}); "
            "expected the same: train again with dvc repro"
        )


if __name__ == "__main__":
    errors.run(main)
