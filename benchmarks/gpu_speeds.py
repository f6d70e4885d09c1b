"""What benchmarks.gpu measures: the device, a network alone, and the pipeline's own functions."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from stages import features
from stages.common.dataset import chunks
from stages.common.networks.heads import make_head
from stages.common.networks.model_file import FEATURES
from stages.common.networks.serialization import load
from stages.common.recipes import pretrained
from stages.common.runtime import paths
from stages.common.runtime.backend import device, keras
from stages.common.runtime.parameters import Pretrained
from stages.common.training import trainer
from stages.common.training.batches import Batches, Part, Shuffle
from stages.common.training.recipe import phase_of
from stages.common.training.trainer import Examples, Trainer

LABELS = 20
REPEATS = 5


def seconds_of(work: Callable[[], jax.Array], calls: int) -> float:
    """Seconds that one call of `work` keeps the device busy: the median of several series of `calls`, after one that compiles."""
    work().block_until_ready()
    measured = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            last = work()
        last.block_until_ready()
        measured.append((time.perf_counter() - start) / calls)
    return median(measured)


def matrix_rate(side: int, calls: int) -> float:
    """FLOP/s of the product of two square bfloat16 matrices."""
    left, right = (jax.random.normal(jax.random.key(seed), (side, side), jnp.bfloat16) for seed in (0, 1))
    multiply = jax.jit(jnp.matmul)
    return 2 * side**3 / seconds_of(lambda: multiply(left, right), calls)


def flop(model: keras.Model) -> int:
    """FLOP an image of a backbone's convolutions.

    Counted here, because XLA's own count for a GPU lacks what cuDNN and cuBLAS compute.
    """
    return sum(
        2 * math.prod(layer.output.shape[1:3]) * math.prod(weight.shape)
        for layer in model.layers
        for weight in layer.weights
        if len(weight.shape) == 4
    )


def forward(model: keras.Model, pixels: np.ndarray, calls: int) -> float:
    """Images/s of `model` alone on uint8 images, (n, side, side, 3), that are on the device."""
    state = [
        [variable.value for variable in part] for part in (model.trainable_variables, model.non_trainable_variables)
    ]
    on_device = jnp.asarray(pixels)
    call = jax.jit(lambda state, images: model.stateless_call(*state, images, training=False)[0])
    return len(pixels) / seconds_of(lambda: call(state, on_device), calls)


def best_forward(model: keras.Model, batches: tuple[int, ...], calls: int) -> tuple[float, int]:
    """Images/s of `forward` with the fastest of the batches that fit into the device's memory, and the size of that batch."""
    measured: list[tuple[float, int]] = []
    generator = np.random.default_rng(0)
    for batch in batches:
        pixels = generator.integers(0, 256, (batch, *model.input.shape[1:]), np.uint8)
        try:
            measured.append((forward(model, pixels, calls), batch))
        except RuntimeError as error:
            if not measured or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
    print(
        "forward alone: " + ", ".join(f"{rate:,.0f} images/s by {batch}" for rate, batch in measured), file=sys.stderr
    )
    return max(measured)


def extraction(model: keras.Model, source: Path, folder: Path) -> tuple[float, float]:
    """Seconds of features.extract from `source` to `folder`, three chunk files or more; and its images/s without compiling.

    The latter are counted from the first file to the last but one: the last may be shorter, and then needs a compilation.
    """
    start = time.perf_counter()
    features.extract(model, folder / "backbone.keras", source, folder, "pooled", "features", device())
    seconds = time.perf_counter() - start
    written = chunks.paths(folder)
    images = sum(len(chunks.names(path)) for path in written[1:-1])
    return seconds, images / (written[-2].stat().st_mtime - written[0].stat().st_mtime)


def head_seconds(name: str, section: Pretrained, split: pd.DataFrame, work: Path) -> float:
    """Seconds of the recipe for a linear head alone, on the features that are in the folder `work`."""
    change = {"head": "softmax", "fine_tune_epochs": 0, "refit": False}
    start = time.perf_counter()
    with chdir(work):
        pretrained.train(name, section.model_copy(update=change), 1, split, Trainer("head", work))
    return time.perf_counter() - start


def tuning_rate(name: str, section: Pretrained, part: Part, source: Path, work: Path) -> float:
    """Images/s of the trainer on the images of `source`, in its second epoch, when everything is compiled."""
    frozen, _ = load(work / paths.backbone(name))
    pretrained.unfreeze(frozen, section.fine_tune_layers)
    pooled = chunks.Rows(work / paths.features(name), "pooled").read(part.names)
    head = make_head("softmax", LABELS, section.l2 / (2 * len(pooled)), [pooled])
    pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name=FEATURES)
    model = keras.Model(frozen.input, head(pool(frozen.output)))
    learning_rate = section.fine_tune_learning_rate
    phase = phase_of("fine-tuning", section, 1, epochs=2, patience=2, learning_rate=learning_rate, augment=True)
    train_epoch, seconds = trainer._train_epoch, []

    def timed(*arguments: Any) -> dict[str, Any]:
        start = time.perf_counter()
        row = train_epoch(*arguments)
        seconds.append(time.perf_counter() - start)
        return row

    with patch.object(trainer, "_train_epoch", timed):
        examples = Examples(chunks.Rows(source, "pixels"), part, None)
        Trainer("fine-tuning", work).fit(model, examples, phase)
    return len(part.names) / seconds[-1]


def reading_rate(source: Path) -> float:
    """Images/s of reading all chunk files of `source`, one after another."""
    start = time.perf_counter()
    images = sum(len(chunks.read(path, "pixels")[1]) for path in chunks.paths(source))
    return images / (time.perf_counter() - start)


def batches_rate(source: Path, part: Part, batch_size: int) -> float:
    """Images/s of making the batches of one epoch of fine-tuning: read row by row, augmented."""
    batches = Batches(chunks.Rows(source, "pixels"), part, LABELS, batch_size, Shuffle(1, 0, augment=True))
    start = time.perf_counter()
    for index in range(len(batches)):
        batches[index]
    return len(part.names) / (time.perf_counter() - start)
