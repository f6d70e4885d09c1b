"""The recipe of a pretrained model: a head on stored features; then, if asked, fine-tuning of backbone and head together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.networks.heads import make_head
from stages.common.networks.serialization import FEATURES, load
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.parameters import Pretrained
from stages.common.training.batches import Part
from stages.common.training.recipe import Trained, labelled_parts, phase_of
from stages.common.training.trainer import Examples, Fit, Phase, Trainer

BLOCK = 512  # rows in memory at a time


def train(name: str, section: Pretrained, seed: int, split: pd.DataFrame, trainer: Trainer) -> Trained:
    """Train a head on the stored features, then fine-tune if `section` says so.

    With `refit`, validation has then told how many epochs are best, and a new model is trained for as many on the
    training and validation images together.

    Args:
        name: of the model.
        section: its parameters.
        seed: of the initial weights, the order, the augmentation and dropout.
        split: the table of the stage split; its test part is not read.
        trainer: records the epochs.

    Returns:
        The model, whose validation macro F1 is that before `refit`.
    """
    features = Rows(paths.features(name), section.features)
    labels, train, validation = labelled_parts(split, features)
    transfer = _Transfer(name, section, features, len(labels), trainer)
    head = phase_of("head", section, seed)
    tuning = phase_of(
        "fine-tuning",
        section,
        seed,
        epochs=section.fine_tune_epochs,
        learning_rate=section.fine_tune_learning_rate,
        augment=True,
    )
    model, on_head, on_both = transfer.fit(train, validation, head, tuning)
    best = max(on_head.best, on_both.best)
    if section.refit:
        both = Part(train.names + validation.names, np.concatenate([train.labels, validation.labels]))
        head = replace(head, name="refit-head", epochs=on_head.epochs)
        tuning = replace(tuning, name="refit-fine-tuning", epochs=on_both.epochs)
        model, _, _ = transfer.fit(both, None, head, tuning)
    return Trained(model, labels, best)


@dataclass(frozen=True)
class _Transfer:
    """What the first training and the refit have in common."""

    name: str
    section: Pretrained
    features: Rows
    labels: int
    trainer: Trainer

    def fit(self, train: Part, validation: Part | None, head: Phase, tuning: Phase) -> tuple[keras.Model, Fit, Fit]:
        """Train a head, put it on the backbone, and fine-tune both if `tuning` has epochs. Returns the whole model."""
        keras.utils.set_random_seed(head.seed)
        # scikit-learn's logistic regression sums its loss over the images; here the loss is their mean.
        l2 = self.section.l2 / (2 * len(train.names))
        layers = make_head(self.section.head, self.labels, self.section.dropout, l2, self._blocks(train))
        inputs = keras.Input(self.features.shape)
        on_head = self.trainer.fit(
            keras.Model(inputs, layers(inputs)), Examples(self.features, train, validation), head
        )
        backbone, _ = load(paths.backbone(self.name))
        backbone.trainable = False
        # float32 whatever the backbone computes in: what the head was trained on.
        pool = keras.layers.GlobalAveragePooling2D if self.section.features == "pooled" else keras.layers.Identity
        model = keras.Model(backbone.input, layers(pool(dtype="float32", name=FEATURES)(backbone.output)))
        if not tuning.epochs:
            return model, on_head, Fit(on_head.best, 0)
        unfreeze(backbone, self.section.fine_tune_layers)
        images = Examples(Rows(paths.RESIZED, "pixels"), train, validation)
        return model, on_head, self.trainer.fit(model, images, tuning, min_f1=on_head.best)

    def _blocks(self, part: Part) -> Iterator[np.ndarray]:
        """The features of `part`, a block of rows at a time."""
        for start in range(0, len(part.names), BLOCK):
            yield self.features.read(part.names[start : start + BLOCK])


def unfreeze(model: keras.Model, layers: int) -> None:
    """Make the last `layers` layers of a backbone that have weights trainable, except BatchNormalization.

    Its statistics are those of ImageNet's million images: a few hundred others would spoil them.
    """
    weighted = [layer for layer in model.layers if layer.weights]
    for layer in weighted[-layers:]:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
