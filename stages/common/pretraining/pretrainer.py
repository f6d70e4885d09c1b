"""An encoder that learns from images without labels: epochs, checkpoints, and an end when its embeddings collapse."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.audit import leak, near_copies
from stages.common.dataset.chunks import EXTRA, Rows
from stages.common.networks.scratch import encoder
from stages.common.pretraining.vicreg import VICReg, covariance, invariance, spread
from stages.common.pretraining.views import Strength, Views
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import Pretrain, Scratch
from stages.common.runtime.progress import progress
from stages.common.training.checkpoint import restore, save
from stages.common.training.distribution import is_first, own_rows

ops = keras.ops

PHASE = "pretraining"
# Layers between the averaged feature maps and the loss, which are not kept.
EXPANDER = (512, 512, 512)
WEIGHT_DECAY = 1e-4
# Below it, of the 1 that the loss asks for, the embeddings are the same for all images.
MIN_SPREAD = 0.02


@dataclass
class Done:
    """The epochs so far, a row each, and their seconds, those of interrupted runs included."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def images_to_learn_from(rows: Rows, listed: list[str], stage: str) -> list[str]:
    """The images among `rows` that are listed, and those of `pretrain.extra`, but no near-copy of a test or validation image.

    An image that is in neither belongs to the validation or the test part, or to a video of theirs. Photographs of a data
    set often come from the folder that is now given as `extra`: near-copies of these, through other near-copies too, are
    skipped, and in `extra` those of any image of the data set, which would count twice.

    Args:
        rows: of the dataset pixels.
        listed: the names in data/pretraining.txt.
        stage: for messages.

    Returns:
        Their names, sorted.
    """
    names = sorted(rows.places)
    extra = np.array([name.startswith(EXTRA) for name in names], bool)
    chosen = np.isin(names, listed) | extra
    with progress(len(names), f"{stage}: looked at", "image", disable=not is_first()) as bar:
        small = near_copies.thumbnails(rows.read, names, bar.update)
    with progress(len(names), f"{stage}: compared", "image", disable=not is_first()) as bar:
        group = leak.groups(near_copies.find(small, bar.update), len(names))
    copies = group >= 0
    of_hidden = chosen & copies & np.isin(group, group[~chosen])
    twice = extra & copies & ~of_hidden & np.isin(group, group[~extra])
    for skipped, whose in ((of_hidden, "validation or test images"), (twice, "the data's images, in pretrain.extra")):
        if skipped.any() and is_first():
            print(f"{stage}: skipped as near-copies of {whose}: {skipped.sum()}")
    return [name for name, keep in zip(names, chosen & ~of_hidden & ~twice, strict=True) if keep]


def pretrain(
    rows: Rows,
    images: list[str],
    network: Scratch,
    how: Pretrain,
    seed: int,
    stage: str,
    folder: Path,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
) -> tuple[keras.Model, Done]:
    """Train an encoder by VICReg on two augmented views of each image.

    After each epoch a checkpoint in `folder` has everything that the next one depends on.

    Args:
        rows: of the dataset pixels.
        images: names of those to learn from.
        network: its `pool` and `filters` are those of the encoder.
        how: epochs, rate, batches, strength of the augmentation. Without epochs the weights stay random.
        seed: of the initial weights, the order and the views.
        stage: for messages.
        folder: of the checkpoint.
        show: is called with each epoch's row at once.

    Returns:
        The encoder, as `networks.scratch.encoder` makes it, and what each epoch had: the means over its batches of the
        loss, the mean squared distance of two views, the covariance, and the embeddings' standard deviation.

    Raises:
        UserError: fewer than two images, embeddings that are equal for all images or not finite, or the system refused to
            write.
    """
    size = rows.shape[0]
    if len(images) < 2:
        raise UserError(
            f"{stage}: {len(images)} images to learn from; expected two or more: add some, or set pretrain.extra"
        )
    keras.utils.set_random_seed(seed)
    # The views have the size after `pool`, so that nothing is averaged again.
    side = size // network.pool
    learner = encoder(side, 1, network.filters)
    views = Views(rows, images, side, how.batch_size, Strength(how.min_area, how.colour), seed)
    model = _compiled(learner, side, how.learning_rate, how.epochs * len(views))
    done = _train(model, views, how.epochs, folder / f"{PHASE}.npz", stage, show)
    result = encoder(size, network.pool, network.filters)
    result.set_weights(learner.get_weights())
    return result, done


def _compiled(learner: keras.Model, side: int, learning_rate: float, steps: int) -> keras.Model:
    """`learner` with its expander, ready for `steps` steps of VICReg."""
    model = with_expander(learner, side)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps))
    # Created here: Keras would build them in the first step, and TensorFlow would trace that step twice.
    metrics = [keras.metrics.MeanMetricWrapper(each, each.__name__) for each in (invariance, covariance, spread)]
    model.compile(keras.optimizers.AdamW(rate, WEIGHT_DECAY), VICReg(), metrics=metrics)
    model.optimizer.build(model.trainable_variables)
    return model


def _train(
    model: keras.Model, views: Views, epochs: int, path: Path, stage: str, show: Callable[[dict[str, Any]], None]
) -> Done:
    """Train the epochs that the checkpoint in `path` lacks. Returns all of them."""
    done, total = Done(), epochs * len(views)
    if restored := restore(model, path, stage, _checked):
        done, _ = restored
        print(f"{stage}: resuming: {len(done.epochs)}/{epochs} epochs done")
        for row in done.epochs:
            show(row)
    with progress(total, stage, "batch", initial=len(done.epochs) * len(views), disable=not is_first()) as bar:
        for epoch in range(len(done.epochs), epochs):
            start = time.perf_counter()
            row = {"epoch": epoch + 1} | _run_epoch(model, views, epoch, bar.update)
            _check(row, stage)
            bar.write(f"{stage}: epoch {epoch + 1}: loss {row['loss']:.3f}, embeddings' deviation {row['spread']:.3f}")
            show(row)
            done.epochs.append(row)
            done.seconds += time.perf_counter() - start
            save(model, asdict(done), path, model.get_weights())
    return done


def _run_epoch(model: keras.Model, views: Views, epoch: int, advance: Callable[[], object]) -> dict[str, float]:
    """Train on all views of an epoch; the means over its batches of the loss and the metrics."""
    sums = dict.fromkeys(("loss", "invariance", "covariance", "spread"), 0.0)
    for batch in views.epoch(epoch):
        *inputs, unused = own_rows(*batch, np.zeros((len(batch.pixels), 1), np.float32))
        seen = model.train_on_batch(inputs, unused, return_dict=True)
        sums = {key: value + float(seen[key]) for key, value in sums.items()}
        advance()
    return {key: value / len(views) for key, value in sums.items()}


def with_expander(learner: keras.Model, side: int) -> keras.Model:
    """From crops and colours, as `Views` makes them, to embeddings."""
    pixels = keras.Input((side, side, 3), dtype="uint8", name="views")
    colours = keras.Input((3, 4), name="colours")
    flat = ops.reshape(ops.cast(pixels, "float32"), (-1, side * side, 3))
    changed = ops.matmul(flat, ops.transpose(colours[:, :, :3], (0, 2, 1))) + ops.expand_dims(colours[:, :, 3], 1)
    x = ops.reshape(ops.clip(changed, 0.0, 255.0), (-1, side, side, 3))
    for layer in learner.layers[1:]:
        x = layer(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    for width in EXPANDER[:-1]:
        x = keras.layers.Dense(width, use_bias=False)(x)
        x = keras.layers.Activation("relu")(keras.layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model([pixels, colours], keras.layers.Dense(EXPANDER[-1], use_bias=False)(x))


def _check(row: dict[str, float], stage: str) -> None:
    if not all(np.isfinite(value) for value in row.values()):
        raise UserError(
            f"{stage}: the loss of epoch {row['epoch']} is not finite; nothing is saved: lower pretrain.learning_rate"
        )
    if row["spread"] < MIN_SPREAD:
        raise UserError(
            f"{stage}: collapsed in epoch {row['epoch']}: the embeddings of different images have a standard deviation of "
            f"{row['spread']:.4f}; expected {MIN_SPREAD} or more: lower pretrain.learning_rate, raise pretrain.min_area, or "
            "add images that differ"
        )


def _checked(record: dict[str, Any]) -> Done:
    """The record of a checkpoint, or a `ValueError`."""
    done = Done(**record)
    if not isinstance(done.seconds, float) or not all("loss" in row for row in done.epochs):
        raise ValueError("its record of the epochs is not one")
    return done
