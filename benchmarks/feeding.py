"""Training fed from the chunk files against the same model fed from memory."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages import annotate, chunked_resize
from stages.common.dataset import chunks
from stages.common.images import layout
from stages.common.networks.heads import make_head
from stages.common.networks.scratch import encoder, scratch
from stages.common.pretraining.pretrainer import with_expander
from stages.common.pretraining.vicreg import VICReg
from stages.common.pretraining.views import Strength, Views
from stages.common.runtime import parameters
from stages.common.runtime.backend import keras
from stages.common.training.batches import Batches, Part, Shuffle
from stages.common.training.losses import make_loss

IMAGES = 640
LABELS = 20
LABELLED = 18_033  # MPII's
EPOCHS = 20

NOTES = f"""
{IMAGES} photographs, and random features for {LABELLED:,}; random labels; epochs in turn, medians of {EPOCHS} pairs after a first one; images per second.
*Memory*: the same batches, made before the clock starts. Augmentation is not feeding but work: its row shows what it costs. A
step of the head takes less than a millisecond, and its 32 rows are rarely in the processor's cache.
"""


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """Images a second from files and from memory: the CNN from scratch, plain and augmented, and a head on pooled features."""
    values = parameters.load()
    folder = layout.images_folder(photographs)
    names = list(annotate.present(annotate.read(photographs).table, folder)["image"])[:IMAGES]
    resized = work / "resized"
    resized.mkdir()
    chunked_resize.resize({name: folder / name for name in names}, values.resize.size, values.resize.chunk, resized, 2)
    images = chunks.Rows(resized, "pixels")
    section, how = values.scratch, values.pretrain
    model = scratch(values.resize.size, section.pool, section.filters, section.dropout, LABELS)
    side = values.resize.size // section.pool
    views = Views(images, names, side, how.batch_size, Strength(how.min_area, how.colour), 1)
    learner = with_expander(encoder(side, 1, section.filters), side)
    learner.compile(keras.optimizers.AdamW(1e-4), VICReg())
    rows = [
        _supervised("scratch", model, images, section.batch_size, augment=False),
        _supervised("scratch, augmented", model, images, section.batch_size, augment=True),
        _compared("encoder of selfsupervised, two views", learner, lambda epoch: _targets(views, epoch), len(names)),
    ]
    (work / "features").mkdir()
    generator = np.random.default_rng(0)
    for start in range(0, LABELLED, values.resize.chunk):
        names = [f"{number:06d}.jpg" for number in range(start, min(start + values.resize.chunk, LABELLED))]
        pooled = generator.random((len(names), 1280), np.float32)
        chunks.write(work / f"features/{start:06d}.h5", names, {"pooled": pooled})
    features = chunks.Rows(work / "features", "pooled")
    stored = keras.Input(features.shape)
    head = make_head("softmax", LABELS, 1e-3, [pooled])
    rows.append(
        _supervised(
            "head on pooled features",
            keras.Model(stored, head(stored)),
            features,
            values.backbone.batch_size,
            augment=False,
        )
    )
    shutil.rmtree(resized)
    return pd.DataFrame(rows)


def _supervised(what: str, model: keras.Model, rows: chunks.Rows, batch_size: int, *, augment: bool) -> dict[str, Any]:
    labels = np.random.default_rng(0).integers(0, LABELS, len(rows))
    part = Part(list(rows.places), labels)
    loss = make_loss("logit_adjustment", np.bincount(labels, minlength=LABELS))
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    target = {} if augment else {"target": ">= 0.95"}

    def batches(epoch: int) -> Batches:
        return Batches(rows, part, LABELS, batch_size, Shuffle(1, epoch, augment))

    return _compared(what, model, batches, len(labels)) | target


def _targets(views: Views, epoch: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Batches of views with the targets that Keras asks for, which the loss does not use."""
    for batch in views.epoch(epoch):
        yield list(batch), np.zeros((len(batch.pixels), 1), np.float32)


def _compared(
    what: str, model: keras.Model, batches: Callable[[int], Iterable[tuple[Any, np.ndarray]]], images: int
) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {"files": [], "memory": []}
    for epoch in range(EPOCHS + 1):
        sources = [("files", batches(epoch)), ("memory", list(batches(epoch)))]
        for source, data in sources[:: 1 if epoch % 2 else -1]:
            start = time.perf_counter()
            for features, targets in data:
                model.train_on_batch(features, targets)
            if epoch:
                speeds[source].append(images / (time.perf_counter() - start))
    files, memory = (statistics.median(values) for values in speeds.values())
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*speeds.values(), strict=True))
    return {"model": what, "from files": files, "from memory": memory, "ratio": ratio}
