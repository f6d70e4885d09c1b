"""Training in phases: epochs, early stopping, the best epoch by macro F1 on the validation part, and resuming."""

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from tqdm import tqdm

from stages.common.dataset.chunks import Rows
from stages.common.evaluation.scores import f1
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.progress import progress
from stages.common.training.batches import Batches, Part, Shuffle
from stages.common.training.checkpoint import restore, save
from stages.common.training.distribution import gathered, is_first, own_rows
from stages.common.training.losses import make_loss


@dataclass(frozen=True)
class Phase:
    """How a model is trained in one phase: by Adam, whose rate decays to 0 along a cosine over all `epochs`.

    With `patience` 0 all epochs are trained and the last one is kept, else the one with the best validation macro F1.
    """

    name: str
    epochs: int
    patience: int
    learning_rate: float
    batch_size: int
    imbalance: str
    seed: int
    augment: bool = False


class Examples(NamedTuple):
    """What a model learns from: the training and the validation images, and the rows that it takes of them."""

    rows: Rows
    train: Part
    validation: Part | None  # without one the last epoch is kept


class Fit(NamedTuple):
    """The best macro F1 on the validation images, and the number of epochs up to that one."""

    best: float
    epochs: int


@dataclass
class _Progress:
    """How far a phase is: everything that its next epoch depends on, besides the weights and the optimizer."""

    best: float
    best_epochs: int = 0
    since_best: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Trainer:
    """Trains the phases of one stage, and records them.

    Attributes:
        stage: for messages.
        folder: of checkpoints, one per phase. Everything that the phases depend on must belong to this folder.
        show: is called with each row of `epochs` at once.
        epochs: one row per epoch of all phases so far. `loss` is what was minimised, penalties and weights included;
            `validation_loss` is plain cross-entropy.
        images: trained on, counted once an epoch.
        seconds: of all epochs, those of interrupted runs included.
    """

    stage: str
    folder: Path
    show: Callable[[dict[str, Any]], None] = lambda row: None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    def fit(self, model: keras.Model, examples: Examples, phase: Phase, min_f1: float = -1.0) -> Fit:
        """Train the trainable layers of `model`, and leave it with the weights of its best epoch.

        A checkpoint after each epoch has everything that the next one depends on; a phase resumes from there.

        Args:
            model: rows to logits.
            examples: what it learns from.
            phase: how to train.
            min_f1: the macro F1 that the model already has: an epoch must beat it to count as better.

        Raises:
            UserError: the loss is not finite, or the system refused to write.
        """
        counts = np.bincount(examples.train.labels, minlength=model.output.shape[-1])
        # The decay to 0 makes the last epochs alike: the best one is then hardly an accident of rounding.
        rate = keras.optimizers.schedules.CosineDecay(phase.learning_rate, phase.epochs * _steps(examples, phase))
        # Created here: Keras would build it by its name in the first step, and TensorFlow would trace that step twice.
        accuracy = keras.metrics.CategoricalAccuracy("accuracy")
        model.compile(keras.optimizers.Adam(rate), make_loss(phase.imbalance, counts), metrics=[accuracy])
        model.optimizer.build(model.trainable_variables)
        done, best_weights = _Progress(min_f1), model.get_weights()
        if restored := restore(model, self.folder / f"{phase.name}.npz", self.stage, _checked):
            done, best_weights = restored
            print(f"{self.stage}: resuming: {len(done.epochs)}/{phase.epochs} epochs of phase {phase.name} done")
            for row in done.epochs:
                self.show(row)
        best_weights = self._run(model, examples, phase, done, best_weights)
        model.set_weights(best_weights)
        self.epochs += done.epochs
        self.images += len(done.epochs) * len(examples.train.names)
        self.seconds += done.seconds
        return Fit(done.best, done.best_epochs)

    def record(self, model: keras.Model, examples: Examples, phase: Phase, seconds: float) -> Fit:
        """Add a model that was solved, not trained by epochs, as one epoch of `phase`."""
        rows, train, validation = examples
        classes = model.output.shape[-1]
        logits = logits_of(model, rows, train, phase.batch_size)
        loss = make_loss(phase.imbalance, np.bincount(train.labels, minlength=classes))
        losses = keras.ops.convert_to_numpy(loss(np.eye(classes, dtype=np.float32)[train.labels], logits))
        row: dict[str, Any] = {
            "epoch": len(self.epochs) + 1,
            "phase": phase.name,
            "loss": float(losses.mean()) + float(sum(model.losses)),
            "accuracy": float((logits.argmax(axis=1) == train.labels).mean()),
        }
        if validation is not None:
            row |= validate(model, rows, validation, phase.batch_size)
        print(_line(self.stage, row, better=False))
        self.show(row)
        self.epochs.append(row)
        self.images += len(train.names)
        self.seconds += seconds
        return Fit(row.get("validation_macro_f1", -1.0), 1)

    def _run(
        self, model: keras.Model, examples: Examples, phase: Phase, done: _Progress, best_weights: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Train the epochs that `done` lacks, and add them to it. Returns the weights of the best epoch."""
        first, resumed = len(self.epochs), len(done.epochs)
        steps = _steps(examples, phase)
        name = f"{self.stage} {phase.name}"
        with progress(phase.epochs * steps, name, "batch", initial=resumed * steps, disable=not is_first()) as bar:
            for epoch in range(first + resumed, first + phase.epochs):
                if 0 < phase.patience <= done.since_best:
                    bar.write(f"{self.stage}: stopped: {done.since_best} epochs without improvement")
                    break
                start = time.perf_counter()
                row = _train_epoch(model, examples, phase, epoch, bar)
                if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
                    raise UserError(
                        f"{self.stage}: the loss of epoch {epoch + 1} is not finite; nothing is saved: lower the learning "
                        f"rate ({phase.learning_rate})"
                    )
                last = examples.validation is None or not phase.patience
                better = last or row["validation_macro_f1"] > done.best
                bar.write(_line(self.stage, row, better and phase.patience > 0))
                self.show(row)
                done.epochs.append(row)
                done.since_best = 0 if better else done.since_best + 1
                if better:
                    done.best, done.best_epochs = row.get("validation_macro_f1", done.best), len(done.epochs)
                    best_weights = model.get_weights()
                done.seconds += time.perf_counter() - start
                save(model, asdict(done), self.folder / f"{phase.name}.npz", best_weights)
        return best_weights


def _steps(examples: Examples, phase: Phase) -> int:
    """Batches an epoch."""
    return -(-len(examples.train.names) // phase.batch_size)


def epoch_seed(seed: int, epoch: int) -> int:
    """A 32-bit seed for everything random in one epoch: a function of the seed and the epoch alone."""
    return zlib.crc32(f"{seed} {epoch}".encode())


def reset_randomness(model: keras.Model, seed: int, epoch: int) -> None:
    """Set the state of the model's random layers to a function of (seed, epoch), whatever ran before."""
    for number, variable in enumerate(v for v in model.variables if v.path.endswith("seed_generator_state")):
        variable.assign(keras.ops.array([epoch_seed(seed, epoch), number], dtype=variable.dtype))


def _train_epoch(model: keras.Model, examples: Examples, phase: Phase, epoch: int, bar: "tqdm[Any]") -> dict[str, Any]:
    """Train one epoch, whose randomness follows from (seed, epoch) alone, and validate: a row of `Trainer.epochs`."""
    rows, train, validation = examples
    shuffle = Shuffle(phase.seed, epoch, phase.augment)
    reset_randomness(model, phase.seed, epoch)
    sums = dict.fromkeys(("loss", "accuracy"), 0.0)
    # Not model.fit: its iteration over batches made here takes as long as a step of a head.
    for features, targets in Batches(rows, train, model.output.shape[-1], phase.batch_size, shuffle):
        seen = model.train_on_batch(*own_rows(features, targets), return_dict=True)
        sums = {key: total + float(seen[key]) * len(targets) for key, total in sums.items()}
        bar.update()
    means = {key: total / len(train.names) for key, total in sums.items()}
    row = {"epoch": epoch + 1, "phase": phase.name, **means}
    return row if validation is None else row | validate(model, rows, validation, phase.batch_size)


def validate(model: keras.Model, rows: Rows, part: Part, batch_size: int) -> dict[str, float]:
    """Plain cross-entropy, accuracy and macro F1 of a model that returns logits, each over all of `part`."""
    logits = logits_of(model, rows, part, batch_size).astype(np.float64)
    predicted = logits.argmax(axis=1)
    return {
        "validation_loss": float(-log_softmax(logits, axis=1)[np.arange(len(logits)), part.labels].mean()),
        "validation_accuracy": float((predicted == part.labels).mean()),
        "validation_macro_f1": f1(part.labels, predicted, "macro"),
    }


def logits_of(model: keras.Model, rows: Rows, part: Part, batch_size: int) -> np.ndarray:
    """The model's logits for all rows of `part`, (n, labels) float32."""
    batches = Batches(rows, part, model.output.shape[-1], batch_size)
    return np.concatenate([gathered(model).predict_on_batch(features) for features, _ in batches])


def _checked(record: dict[str, Any]) -> _Progress:
    """The record of a checkpoint, or a `ValueError`."""
    done = _Progress(**record)
    if (
        not isinstance(done.best, float)
        or not isinstance(done.seconds, float)
        or not all("epoch" in row for row in done.epochs)
    ):
        raise ValueError("its record of the epochs is not one")
    return done


def _line(stage: str, row: dict[str, Any], better: bool) -> str:
    line = f"{stage}: epoch {row['epoch']} ({row['phase']}): loss {row['loss']:.3f}"
    if "validation_loss" not in row:
        return line
    return (
        f"{line}, validation loss {row['validation_loss']:.3f}, accuracy {row['validation_accuracy']:.3f}, "
        f"macro F1 {row['validation_macro_f1']:.3f}{' (best)' if better else ''}"
    )
