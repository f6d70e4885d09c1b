"""The recipe of the CNN from scratch: one phase on the images."""

from collections.abc import Callable

import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.networks.scratch import scratch
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.parameters import Scratch
from stages.common.training.recipe import Trained, labelled_parts, phase_of
from stages.common.training.trainer import Examples, Trainer


def train(name: str, section: Scratch, seed: int, split: pd.DataFrame, trainer: Trainer) -> Trained:
    """Train a CNN from random weights on the resized images.

    Args:
        name: of the model.
        section: its parameters.
        seed: of the initial weights, the order, the augmentation and dropout.
        split: the table of the stage split; its test part is not read.
        trainer: records the epochs.
    """

    def build(rows: Rows, labels: int) -> keras.Model:
        return scratch(rows.shape[0], section.pool, section.filters, section.dropout, labels)

    return train_on(build, name, section, seed, split, trainer)


def train_on(
    build: Callable[[Rows, int], keras.Model],
    name: str,
    section: Scratch,
    seed: int,
    split: pd.DataFrame,
    trainer: Trainer,
) -> Trained:
    """As `train`, of the model that `build` returns for the resized images and a number of labels."""
    rows = Rows(paths.RESIZED, "pixels")
    labels, train, validation = labelled_parts(split, rows)
    keras.utils.set_random_seed(seed)
    model = build(rows, len(labels))
    phase = phase_of(name, section, seed, augment=section.augment)
    best, _ = trainer.fit(model, Examples(rows, train, validation), phase)
    return Trained(model, rows, lambda: model, labels, best)
