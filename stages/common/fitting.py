"""Training one phase: epochs, early stopping, and the best epoch by macro F1 on the validation part."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.common.backend import keras
from stages.common.batches import Batches, Part, Shuffle
from stages.common.chunks import Rows
from stages.common.files import new_file
from stages.common.imbalance import make_loss
from stages.common.networks import reset_randomness
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.scores import f1


@dataclass(frozen=True)
class Phase:
    """What is done to a model in one phase. `rate` is Adam's learning rate."""

    name: str
    epochs: int
    patience: int
    rate: float
    batch_size: int
    imbalance: str
    seed: int
    augment: bool


@dataclass
class Log:
    """What was seen: one row an epoch of all phases so far, and the figures that depend on the machine."""

    stage: str
    show: Callable[[dict[str, Any]], None] = lambda row: None  # is called with each row at once
    epochs: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0


@dataclass
class _Run:
    """How far a phase is: all that its next epoch depends on, beside the weights and the optimizer."""

    best: float
    best_epochs: int = 0
    since: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    model: keras.Model,
    rows: Rows,
    parts: tuple[Part, Part | None],
    phase: Phase,
    log: Log,
    folder: Path,
    least: float = -1.0,
) -> tuple[float, int]:
    """Train `model`, which gives logits, and leave it with the weights of its best epoch.

    After each epoch all that the next one depends on is written to a file in `folder`, and taken up again from there.

    Args:
        model: rows to logits; its trainable layers are trained.
        rows: what it takes.
        parts: training and validation images. Without the latter the last epoch is kept.
        phase: how to train.
        log: gets one row an epoch. Its loss is what was minimised, penalties and weights included; validation_loss is
            plain cross-entropy.
        folder: of the same model, rows, parts and phase alone.
        least: the macro F1 that the model has already: an epoch must beat it to count as better.

    Returns:
        The macro F1 of the best epoch on the validation images, or `least`; and the number of epochs up to that one.

    Raises:
        Problem: the loss became infinite or not a number, or the system refused to write.
    """
    train, validation = parts
    counts = np.bincount(train.labels, minlength=model.output.shape[-1])
    model.compile(keras.optimizers.Adam(phase.rate), make_loss(phase.imbalance, counts), metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    checkpoint = folder / f"{phase.name}.npz"
    run, best_weights = _Run(least), model.get_weights()
    if checkpoint.exists():
        run, best_weights = _restore(model, checkpoint)
        for row in run.epochs:
            log.show(row)
        print(f"{log.stage}: going on after epoch {run.epochs[-1]['epoch']} ({phase.name})")
    first, done = len(log.epochs), len(run.epochs)
    steps = -(-len(train.names) // phase.batch_size)
    with progress(phase.epochs * steps, f"{log.stage} {phase.name}", "batch", initial=done * steps) as bar:
        for epoch in range(first + done, first + phase.epochs):
            if run.since >= phase.patience:
                bar.write(f"{log.stage}: stopped after {run.since} epochs without a better one")
                break
            start = time.perf_counter()
            row = _epoch(model, rows, parts, phase, epoch, bar)
            if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
                raise Problem(
                    f"{log.stage}: the loss of epoch {epoch + 1} is not finite; nothing is saved: lower the learning rate ({phase.rate})"
                )
            better = validation is None or row["validation_macro_f1"] > run.best
            bar.write(_line(log.stage, row, better))
            log.show(row)
            run.epochs.append(row)
            run.since = 0 if better else run.since + 1
            if better:
                run.best, run.best_epochs = row.get("validation_macro_f1", least), len(run.epochs)
                best_weights = model.get_weights()
            run.seconds += time.perf_counter() - start
            _save(model, run, best_weights, checkpoint)
    model.set_weights(best_weights)
    log.epochs += run.epochs
    log.images += len(run.epochs) * len(train.names)
    log.seconds += run.seconds
    return run.best, run.best_epochs


def _epoch(
    model: keras.Model,
    rows: Rows,
    parts: tuple[Part, Part | None],
    phase: Phase,
    epoch: int,
    bar: "tqdm[Any]",
) -> dict[str, Any]:
    """Train one epoch, whose randomness follows from (seed, epoch) alone, and validate: its row in the log."""
    train, validation = parts
    shuffle = Shuffle(phase.seed, epoch, phase.augment)
    reset_randomness(model, phase.seed, epoch)
    sums = dict.fromkeys(("loss", "accuracy"), 0.0)
    # Not model.fit, whose iterator over batches made here takes as long as a step of a head.
    for features, targets in Batches(rows, train, model.output.shape[-1], phase.batch_size, shuffle):
        seen = model.train_on_batch(features, targets, return_dict=True)
        sums = {key: total + float(seen[key]) * len(targets) for key, total in sums.items()}
        bar.update()
    means = {key: total / len(train.names) for key, total in sums.items()}
    row = {"epoch": epoch + 1, "phase": phase.name, **means}
    return row if validation is None else row | validate(model, rows, validation, phase.batch_size)


def _save(model: keras.Model, run: _Run, best_weights: list[np.ndarray], path: Path) -> None:
    optimizer = [keras.ops.convert_to_numpy(variable) for variable in model.optimizer.variables]
    values = {"weights": model.get_weights(), "best": best_weights, "optimizer": optimizer}
    arrays = {f"{name} {number}": array for name, arrays in values.items() for number, array in enumerate(arrays)}
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, run=np.array(json.dumps(asdict(run))), **arrays)


def _restore(model: keras.Model, path: Path) -> tuple[_Run, list[np.ndarray]]:
    with np.load(path, allow_pickle=False) as stored:
        weights, best, optimizer = (
            [stored[f"{name} {number}"] for number in range(count)]
            for name, count in (
                ("weights", len(model.weights)),
                ("best", len(model.weights)),
                ("optimizer", len(model.optimizer.variables)),
            )
        )
        run = _Run(**json.loads(str(stored["run"])))
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
        variable.assign(value)
    return run, best


def validate(model: keras.Model, rows: Rows, part: Part, batch_size: int) -> dict[str, float]:
    """Plain cross-entropy, accuracy and macro F1 of a model that gives logits, each over all of `part`."""
    batches = Batches(rows, part, model.output.shape[-1], batch_size)
    logits = np.concatenate([model.predict_on_batch(features) for features, _ in batches]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), part.labels]
    predictions = logits.argmax(axis=1)
    return {
        "validation_loss": float(losses.mean()),
        "validation_accuracy": float((predictions == part.labels).mean()),
        "validation_macro_f1": f1(part.labels, predictions, "macro"),
    }


def _line(stage: str, row: dict[str, Any], better: bool) -> str:
    line = f"{stage}: epoch {row['epoch']} ({row['phase']}): loss {row['loss']:.3f}"
    if "validation_loss" not in row:
        return line
    return (
        f"{line}, validation loss {row['validation_loss']:.3f}, accuracy {row['validation_accuracy']:.3f}, "
        f"macro F1 {row['validation_macro_f1']:.3f}{' (best)' if better else ''}"
    )
