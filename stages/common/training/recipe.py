"""What the recipes of all kinds of models share."""

from typing import Any, NamedTuple

import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import images_of, labels_of
from stages.common.runtime.backend import keras
from stages.common.runtime.parameters import Training
from stages.common.training.batches import Part
from stages.common.training.trainer import Phase


class Trained(NamedTuple):
    """A whole model, uint8 images to logits, the names of its outputs, and its best macro F1 on the validation images."""

    model: keras.Model
    labels: list[str]
    validation_macro_f1: float


def labelled_parts(split: pd.DataFrame, rows: Rows) -> tuple[list[str], Part, Part]:
    """The labels, and the training and validation images that `rows` has.

    Raises:
        UserError: a part has no image.
    """
    labels = labels_of(split)
    chosen = [images_of(split, part, rows) for part in ("train", "validation")]
    train, validation = (
        Part(list(part["image"]), pd.Index(labels).get_indexer(pd.Index(part["label"]))) for part in chosen
    )
    return labels, train, validation


def phase_of(name: str, section: Training, seed: int, **changes: Any) -> Phase:
    """A phase with the values of a model's section; `changes` are those that differ."""
    shared = ("epochs", "patience", "learning_rate", "batch_size", "imbalance")
    return Phase(**{"name": name, "seed": seed, **{key: getattr(section, key) for key in shared}, **changes})
