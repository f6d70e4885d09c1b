"""Train one model: a CNN from scratch on the images, or a head on a backbone's features and then, if asked, fine-tune both.

The test part is never read here.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common import networks, parameters, problem
from stages.common.backend import device, keras
from stages.common.batches import Part
from stages.common.chunks import Rows
from stages.common.files import lock, write_csv, write_json
from stages.common.fitting import Log, Phase, fit
from stages.common.live import live
from stages.common.parameters import MODELS, Pretrained, Scratch
from stages.common.parts import choose, labels_of, read_split
from stages.common.problem import Problem
from stages.common.resuming import code, resumable, state
from stages.common.saving import load, save

RESIZED = Path("data/resized")
FEATURES = Path("data/features")
MODEL = "models/{}/model.keras"
TIMING = "models/{}/timing/train.json"
CURVES = "plots/train-{}.csv"
VALIDATION = "models/{}/validation.json"
BLOCK = 512  # rows in memory at a time


def _images(split: pd.DataFrame, rows: Rows) -> tuple[list[str], tuple[Part, Part]]:
    """The labels, and the training and validation images that `rows` has."""
    labels = labels_of(split)
    chosen = [choose(split, part, rows) for part in ("train", "validation")]
    train, validation = (
        Part(list(part["image"]), pd.Index(labels).get_indexer(pd.Index(part["label"]))) for part in chosen
    )
    return labels, (train, validation)


def train_scratch(
    section: Scratch, seed: int, split: pd.DataFrame, log: Log, done: Path
) -> tuple[keras.Model, list[str], float]:
    """Train a CNN from random weights on the resized images, going on from what is in the folder `done`.

    Returns:
        The model (uint8 images to logits), its labels, its best macro F1.
    """
    rows = Rows(RESIZED, "pixels")
    labels, images = _images(split, rows)
    keras.utils.set_random_seed(seed)
    model = networks.scratch(rows.shape[0], section.pool, section.filters, section.dropout, len(labels))
    phase = _phase("scratch", section, seed, section.epochs, section.learning_rate, augment=section.augment)
    best, _ = fit(model, rows, images, phase, log, done)
    return model, labels, best


def train_pretrained(
    section: Pretrained, seed: int, split: pd.DataFrame, features: Path, log: Log, done: Path
) -> tuple[keras.Model, list[str], float]:
    """Train a head on the features in `features`, then fine-tune, going on from what is in the folder `done`.

    With `refit`, validation has then told how many epochs are best, and a model is trained anew for as many, on the
    training and validation images together.

    Returns:
        The model (uint8 images to logits), its labels, the best macro F1 on the validation images (before `refit`).
    """
    rows = Rows(features, networks.TAKES[section.head])
    labels, (train, validation) = _images(split, rows)
    head = _phase("head", section, seed, section.epochs, section.learning_rate)
    tuning = _phase(
        "fine-tuning", section, seed, section.fine_tune_epochs, section.fine_tune_learning_rate, augment=True
    )
    places = features, rows, log, done
    model, best, (head_epochs, tuning_epochs) = _fit_phases(
        section, len(labels), (train, validation), (head, tuning), *places
    )
    if section.refit:
        both = Part(train.names + validation.names, np.concatenate([train.labels, validation.labels]))
        again = (
            replace(head, name="refit-head", epochs=head_epochs),
            replace(tuning, name="refit-fine-tuning", epochs=tuning_epochs),
        )
        model, _, _ = _fit_phases(section, len(labels), (both, None), again, *places)
    return model, labels, best


def _fit_phases(
    section: Pretrained,
    labels: int,
    parts: tuple[Part, Part | None],
    phases: tuple[Phase, Phase],
    features: Path,
    rows: Rows,
    log: Log,
    done: Path,
) -> tuple[keras.Model, float, tuple[int, int]]:
    """Train the head of the first phase, put it on the backbone, and fine-tune both in the second, if it has epochs.

    Returns:
        The whole model, its best macro F1 (-1 without validation images), and how many epochs of each phase led to it.
    """
    on_head, on_both = phases
    keras.utils.set_random_seed(on_head.seed)
    names = parts[0].names
    blocks = (rows.read(names[start : start + BLOCK]) for start in range(0, len(names), BLOCK))
    # scikit-learn's logistic regression sums its loss over the images; here it is their mean.
    head = networks.head(section.head, labels, section.dropout, section.l2 / (2 * len(names)), blocks)
    stored = keras.Input(rows.shape)
    best, epochs = fit(keras.Model(stored, head(stored)), rows, parts, on_head, log, done)
    backbone, _ = load(features / "backbone.keras")
    maps = backbone.output
    model = keras.Model(
        backbone.input,
        head(
            keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(maps)
            if section.head == "softmax"
            else maps
        ),
    )
    if not on_both.epochs:
        return model, best, (epochs, 0)
    networks.unfreeze(backbone, section.fine_tune_layers)
    best, tuned = fit(model, Rows(RESIZED, "pixels"), parts, on_both, log, done, least=best)
    return model, best, (epochs, tuned)


def _phase(
    name: str, section: Scratch | Pretrained, seed: int, epochs: int, rate: float, *, augment: bool = False
) -> Phase:
    return Phase(
        name=name,
        epochs=epochs,
        patience=section.patience,
        rate=rate,
        batch_size=section.batch_size,
        imbalance=section.imbalance,
        seed=seed,
        augment=augment,
    )


def main() -> None:
    values = parameters.load()
    if len(sys.argv) != 2 or sys.argv[1] not in MODELS:
        raise Problem(f"usage: python -m stages.train {{{','.join(MODELS)}}}")
    name = sys.argv[1]
    log = Log(f"train-{name}")
    with lock(log.stage):
        log.show = live()
        print(f"{log.stage}: on {device()}")
        _run(name, getattr(values, name), values.seed, log)


def _run(name: str, section: Scratch | Pretrained, seed: int, log: Log) -> None:
    split = read_split()
    path = Path(MODEL.format(name))
    inputs = [file for folder in (RESIZED, FEATURES / name) if folder.is_dir() for file in sorted(folder.iterdir())]
    with resumable(path, code(), device(), seed, section.model_dump(), split.to_csv(), state(inputs)) as done:
        if isinstance(section, Scratch):
            logits, labels, best = train_scratch(section, seed, split, log, done)
        else:
            logits, labels, best = train_pretrained(section, seed, split, FEATURES / name, log, done)
        probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits.output)
        model = keras.Model(logits.input, probabilities, name=name)
        model.trainable = True
        save(model, path, labels)
        # Epochs of a refit have no validation: their number is known already.
        curves = pd.DataFrame(log.epochs).dropna(subset="validation_macro_f1")
        write_csv(Path(CURVES.format(name)), curves.round(6))
        best_epoch = int(np.argmax(curves["validation_macro_f1"])) + 1
        write_json(Path(VALIDATION.format(name)), {"validation_macro_f1": round(best, 6), "best_epoch": best_epoch})
        timing = {
            "seconds": round(log.seconds, 1),
            "epochs": len(log.epochs),
            "images": log.images,
            "parameters": model.count_params(),
            "device": device(),
        }
        write_json(Path(TIMING.format(name)), timing)


if __name__ == "__main__":
    problem.run(main)
