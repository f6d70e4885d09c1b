"""The recipe of a pretrained model: a head on stored features, solved if it is linear; then, if asked, fine-tuning of backbone and head together."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.networks.heads import make_head
from stages.common.networks.model_file import FEATURES
from stages.common.networks.serialization import load
from stages.common.recipes import linear
from stages.common.runtime import paths
from stages.common.runtime.backend import Layers, keras
from stages.common.runtime.parameters import Pretrained
from stages.common.training.batches import Part
from stages.common.training.recipe import Trained, labelled_parts, phase_of
from stages.common.training.trainer import Examples, Fit, Phase, Trainer

BLOCK = 512  # rows in memory at a time


def train(name: str, section: Pretrained, seed: int, split: pd.DataFrame, trainer: Trainer) -> Trained:
    """Train a head on the stored features, then fine-tune if `section` says so.

    With `refit`, validation has then told how many epochs are best, and a new model is trained for as many on the
    training and validation images together. Without a validation part there is one training, and no score.

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
    fitted, on_head, on_both = transfer.fit(train, validation, head, tuning)
    best = max(on_head.best, on_both.best)
    if section.refit and validation is not None:
        both = Part(train.names + validation.names, np.concatenate([train.labels, validation.labels]))
        head = replace(head, name="refit-head", epochs=on_head.epochs)
        tuning = replace(tuning, name="refit-fine-tuning", epochs=on_both.epochs)
        fitted, _, _ = transfer.fit(both, None, head, tuning)
    return Trained(*fitted, labels, best)


@dataclass(frozen=True)
class _Transfer:
    """What the first training and the refit have in common."""

    name: str
    section: Pretrained
    features: Rows
    labels: int
    trainer: Trainer

    def fit(
        self, train: Part, validation: Part | None, head: Phase, tuning: Phase
    ) -> tuple[tuple[keras.Model, Rows, Callable[[], keras.Model]], Fit, Fit]:
        """Train a head, and fine-tune it with the backbone if `tuning` has epochs.

        Returns:
            The model as the first attributes of `Trained`, and how each phase went.
        """
        keras.utils.set_random_seed(head.seed)
        # scikit-learn's logistic regression sums its loss over the images; here the loss is their mean.
        l2 = self.section.l2 / (2 * len(train.names))
        layers = make_head(self.section.head, self.labels, l2, self._blocks(train))
        inputs = keras.Input(self.features.shape)
        on_features = Examples(self.features, train, validation)
        fit = self._solve if self.section.head == "softmax" else self.trainer.fit
        model = keras.Model(inputs, layers(inputs))
        on_head = fit(model, on_features, head)
        if not tuning.epochs:
            return (model, self.features, lambda: self._whole(layers)), on_head, Fit(on_head.best, 0)
        model = self._whole(layers, unfrozen=self.section.fine_tune_layers)
        images = Examples(Rows(paths.RESIZED, "pixels"), train, validation)
        on_both = self.trainer.fit(model, images, tuning, min_f1=on_head.best)
        return (model, images.rows, lambda: model), on_head, on_both

    def _whole(self, layers: Layers, unfrozen: int = 0) -> keras.Model:
        """The backbone and the head, of which the head and the last `unfrozen` layers of the backbone are trainable."""
        backbone, _ = load(paths.backbone(self.name))
        backbone.trainable = False
        if unfrozen:
            unfreeze(backbone, unfrozen)
        # float32 whatever the backbone computes in: what the head was trained on.
        average = self.section.features == "pooled" and len(backbone.output.shape) == 4
        pool = keras.layers.GlobalAveragePooling2D if average else keras.layers.Identity
        return keras.Model(backbone.input, layers(pool(dtype="float32", name=FEATURES)(backbone.output)))

    def _solve(self, head: keras.Model, examples: Examples, phase: Phase) -> Fit:
        """Give the linear head `head` the weights of its optimum."""
        start, train, stage = time.perf_counter(), examples.train, self.trainer.stage
        print(f"{stage}: solving phase {phase.name}: {len(train.names)} images, {self.labels} labels", flush=True)
        if not linear.fit_head(head, self._blocks(train), train.labels, phase.imbalance, self.section.l2):
            print(
                f"{stage}: warning: not at the optimum after {linear.MAX_ITERATIONS} iterations; raise {self.name}.l2"
            )
        return self.trainer.record(head, examples, phase, time.perf_counter() - start)

    def _blocks(self, part: Part) -> Iterator[np.ndarray]:
        """The features of `part`, a block of rows at a time."""
        for start in range(0, len(part.names), BLOCK):
            yield self.features.read(part.names[start : start + BLOCK])


def unfreeze(model: keras.Model, layers: int) -> None:
    """Make the last `layers` layers of a backbone that have weights trainable, except BatchNormalization.

    Its statistics are those of ImageNet's million images: a few hundred others would spoil them.
    """
    nested = [layer.layers if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    weighted = [layer for layers_ in nested for layer in layers_ if layer.weights]
    for layer in weighted[-layers:]:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
