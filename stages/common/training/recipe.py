"""What the recipes of all kinds of models share."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import images_of, labels_of
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import Parameters, Pretrained, Scratch, SelfSupervised, Training
from stages.common.runtime.paths import RESIZE_METRICS, SPLIT
from stages.common.training.batches import Part
from stages.common.training.trainer import Phase, Trainer


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        model: what was trained last, a head or a whole model: `rows` to logits.
        rows: what it takes.
        whole: returns the whole model, uint8 images to logits; for a head, this loads the backbone, which takes seconds.
        labels: names of the outputs.
        validation_macro_f1: the best one on the validation images.
    """

    model: keras.Model
    rows: Rows
    whole: Callable[[], keras.Model]
    labels: list[str]
    validation_macro_f1: float


def labelled_parts(split: pd.DataFrame, rows: Rows) -> tuple[list[str], Part, Part | None]:
    """The labels, and the training and validation images that `rows` has; None if `split` has no validation part.

    Raises:
        UserError: a part has no image that could be decoded, or train has those of one label alone.
    """
    labels = labels_of(split)

    def part(name: str) -> Part:
        chosen = images_of(split, name, rows)
        return Part(list(chosen["image"]), pd.Index(labels).get_indexer(pd.Index(chosen["label"])))

    train = part("train")
    if len(learned := sorted({labels[number] for number in train.labels})) < 2:
        raise UserError(
            f"{SPLIT} has train images of {learned[0]!r} alone that could be decoded; expected two labels or more: see "
            f"{RESIZE_METRICS}"
        )
    return labels, train, part("validation") if (split["part"] == "validation").any() else None


def phase_of(name: str, section: Training, seed: int, **changes: Any) -> Phase:
    """A phase with the values of a model's section; `changes` are those that differ."""
    shared = ("epochs", "patience", "learning_rate", "batch_size", "imbalance")
    return Phase(**{"name": name, "seed": seed, **{key: getattr(section, key) for key in shared}, **changes})


# Name, section, seed, split and trainer to what was trained.
Recipe = Callable[[str, Any, int, pd.DataFrame, Trainer], Trained]


def recipe_of(section: Scratch | Pretrained) -> Recipe:
    """How a model with this section is trained."""
    # Imported here: a stage depends on the code that it loads, and a change of the heads must not train scratch again.
    if isinstance(section, SelfSupervised):
        from stages.common.recipes import selfsupervised

        return selfsupervised.train
    if isinstance(section, Scratch):
        from stages.common.recipes import scratch

        return scratch.train
    from stages.common.recipes import pretrained

    return pretrained.train


def recipe_of_folds(values: Parameters) -> Recipe:
    """How the chosen model is trained on a fold: what it learns without labels, it learns again from the fold's images."""
    if isinstance(values.chosen, SelfSupervised):
        from stages.common.recipes import selfsupervised

        return partial(selfsupervised.train_fold, values.pretrain)
    return recipe_of(values.chosen)
