"""The recipe of the CNN whose convolutions have learned without labels: that of the CNN from scratch, or a linear probe."""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import without_labels
from stages.common.networks.heads import make_head
from stages.common.networks.scratch import classifier
from stages.common.networks.serialization import load
from stages.common.pretraining.pretrainer import images_to_learn_from, pretrain
from stages.common.recipes import linear, scratch
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import Pretrain, SelfSupervised
from stages.common.training.batches import Part
from stages.common.training.distribution import gathered
from stages.common.training.recipe import Trained, labelled_parts, phase_of
from stages.common.training.trainer import Examples, Trainer

# Penalty of a linear probe, as `l2` of a pretrained model.
PROBE_L2 = 10.0
BATCH = 32


def train(name: str, section: SelfSupervised, seed: int, split: pd.DataFrame, trainer: Trainer) -> Trained:
    """Train the CNN from scratch from the weights of the encoder that the stage pretrain has made, or a linear probe of it.

    Args:
        name: of the model.
        section: its parameters.
        seed: of the classifier's initial weights, the order, the augmentation and dropout.
        split: the table of the stage split; its test part is not read.
        trainer: records the epochs.

    Raises:
        UserError: the encoder is not one for these images.
    """

    def stored(rows: Rows) -> keras.Model:
        model, _ = load(paths.ENCODER)
        if model.input_shape[1:] != rows.shape or len(model.output_shape) != 4:
            raise UserError(
                f"{paths.ENCODER} is a model from {model.input_shape} to {model.output_shape}; expected an encoder of images of "
                f"{rows.shape}: make it again with dvc repro"
            )
        return model

    return _train_on(stored, name, section, seed, split, trainer)


def train_fold(
    how: Pretrain, name: str, section: SelfSupervised, seed: int, split: pd.DataFrame, trainer: Trainer
) -> Trained:
    """As `train`, with an encoder of its own, which has seen no image of the validation and test parts of `split`."""

    def pretrained(_: Rows) -> keras.Model:
        rows = Rows(paths.RESIZED, "pixels", paths.UNLABELLED)
        images = images_to_learn_from(rows, without_labels(split), trainer.stage)
        model, _done = pretrain(rows, images, section, how, seed, trainer.stage, trainer.folder)
        return model

    return _train_on(pretrained, name, section, seed, split, trainer)


def _train_on(
    encoder: Callable[[Rows], keras.Model],
    name: str,
    section: SelfSupervised,
    seed: int,
    split: pd.DataFrame,
    trainer: Trainer,
) -> Trained:
    if section.probe:
        return _probe(encoder, section, seed, split, trainer)

    def build(rows: Rows, labels: int) -> keras.Model:
        return classifier(encoder(rows), section.dropout, labels)

    return scratch.train_on(build, name, section, seed, split, trainer)


def _probe(
    encoder: Callable[[Rows], keras.Model],
    section: SelfSupervised,
    seed: int,
    split: pd.DataFrame,
    trainer: Trainer,
) -> Trained:
    """Logistic regression on the averages of the feature maps; the encoder stays as it is."""
    rows = Rows(paths.RESIZED, "pixels")
    labels, train, validation = labelled_parts(split, rows)
    base = encoder(rows)
    base.trainable = False
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(base.output)
    start = time.perf_counter()
    features = _outputs(keras.Model(base.input, pooled), rows, train)
    head = make_head("softmax", len(labels), PROBE_L2 / (2 * len(features)), [features])
    model = keras.Model(base.input, head(pooled))
    imbalance = "none" if section.imbalance == "none" else "class_weight"
    if not linear.fit_head(model, [features], train.labels, imbalance, PROBE_L2):
        print(f"{trainer.stage}: warning: not at the optimum after {linear.MAX_ITERATIONS} iterations")
    phase = phase_of("linear probe", section, seed, imbalance=imbalance)
    best, _ = trainer.record(model, Examples(rows, train, validation), phase, time.perf_counter() - start)
    return Trained(model, rows, lambda: model, labels, best)


def _outputs(model: keras.Model, rows: Rows, part: Part) -> np.ndarray:
    batches = (part.names[start : start + BATCH] for start in range(0, len(part.names), BATCH))
    return np.concatenate([gathered(model).predict_on_batch(rows.read(names)) for names in batches])
