"""Training one phase: epochs, early stopping, and the best epoch by macro F1 on the validation part."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.common.backend import keras
from stages.common.batches import Batches, Part, Shuffle
from stages.common.chunks import Rows
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
    epochs: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0


def fit(model: keras.Model, rows: Rows, parts: tuple[Part, Part], phase: Phase, log: Log, least: float = -1.0) -> float:
    """Train `model`, which gives logits, and leave it with the weights of its best epoch.

    Args:
        model: rows to logits; its trainable layers are trained.
        rows: what it takes.
        parts: training and validation images.
        phase: how to train.
        log: gets one row an epoch.
        least: the macro F1 that the model has already: an epoch must beat it to count as better.

    Returns:
        The macro F1 of the best epoch on the validation images, or `least`.

    Raises:
        Problem: the loss became infinite or not a number.
    """
    train, validation = parts
    classes = model.output.shape[-1]
    counts = np.bincount(train.labels, minlength=classes)
    model.compile(keras.optimizers.Adam(phase.rate), make_loss(phase.imbalance, counts), metrics=["accuracy"])
    best, best_weights, since = least, model.get_weights(), 0
    before = len(log.epochs)
    steps = -(-len(train.names) // phase.batch_size)
    start = time.perf_counter()
    with progress(phase.epochs * steps, f"{log.stage} {phase.name}", "batch") as bar:
        step = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
        for epoch in range(before, before + phase.epochs):
            reset_randomness(model, phase.seed, epoch)
            batches = Batches(rows, train, classes, phase.batch_size, Shuffle(phase.seed, epoch, phase.augment))
            seen = model.fit(batches, verbose=0, shuffle=False, callbacks=[step]).history
            row = {"epoch": epoch + 1, "phase": phase.name, "loss": seen["loss"][0], "accuracy": seen["accuracy"][0]}
            row |= validate(model, rows, validation, phase.batch_size)
            if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
                raise Problem(
                    f"{log.stage}: the loss of epoch {epoch + 1} is not finite; nothing is saved: lower the learning rate ({phase.rate})"
                )
            log.epochs.append(row)
            log.images += len(train.names)
            better = row["validation_macro_f1"] > best
            bar.write(_line(log.stage, row, better))
            since = 0 if better else since + 1
            if better:
                best, best_weights = row["validation_macro_f1"], model.get_weights()
            elif since >= phase.patience:
                bar.write(f"{log.stage}: stopped after {since} epochs without a better one")
                break
    model.set_weights(best_weights)
    log.seconds += time.perf_counter() - start
    return best


def validate(model: keras.Model, rows: Rows, part: Part, batch_size: int) -> dict[str, float]:
    """Plain cross-entropy, accuracy and macro F1 of a model that gives logits, each over all of `part`."""
    logits = model.predict(Batches(rows, part, model.output.shape[-1], batch_size), verbose=0).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), part.labels]
    predictions = logits.argmax(axis=1)
    return {
        "validation_loss": float(losses.mean()),
        "validation_accuracy": float((predictions == part.labels).mean()),
        "validation_macro_f1": f1(part.labels, predictions, "macro"),
    }


def _line(stage: str, row: dict[str, Any], better: bool) -> str:
    return (
        f"{stage}: epoch {row['epoch']} ({row['phase']}): loss {row['loss']:.3f}, validation loss {row['validation_loss']:.3f}, "
        f"accuracy {row['validation_accuracy']:.3f}, macro F1 {row['validation_macro_f1']:.3f}{' (best)' if better else ''}"
    )
