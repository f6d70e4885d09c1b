"""A trained model and what it says of image files."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.common.backbones.backbone import inline
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.images.decoding import DecodeError, decode
from stages.common.networks.serialization import load
from stages.common.runtime import parameters, paths
from stages.common.runtime.backend import keras, on_cpu
from stages.common.runtime.errors import UserError

BATCH = 8 if on_cpu() else 32
AHEAD = 4  # batches that are decoded while the network runs


class Classifier(NamedTuple):
    """From images, (n, size, size, 3) uint8, to the probabilities of `labels`, (n, labels) float32."""

    file: Path
    model: keras.Model
    labels: list[str]


def load_classifier(name: str | None) -> Classifier:
    """The model `name` of this project, or in the .keras file `name`, or by default that of params.yaml.

    Raises:
        UserError: no such file, or not one that a train stage wrote.
    """
    if name is None:
        name = parameters.load().model
    file = paths.model_file(name) if name in parameters.MODELS else Path(name)
    model, labels = load(file)
    if model.output_shape[1:] != (len(labels),):
        raise UserError(
            f"{file}: {len(labels)} labels for an output of {model.output_shape[1:]}; expected a model that a train stage wrote"
        )
    return Classifier(file, model, labels)


def for_inference(model: keras.Model) -> keras.Model:
    """The same function as a model of fewer operations, which takes a second to build."""
    return fold_batch_norm(inline(model))


def label_images(model: keras.Model, images: list[Path]) -> Iterator[tuple[Path, np.ndarray | DecodeError]]:
    """Each image in order, with the probability of each label, (labels,) float32, or why it could not be decoded.

    The next images are decoded while the network runs; memory does not grow with their number.
    """
    size = model.input_shape[1]
    model = for_inference(model)
    waiting: deque[Future[np.ndarray | DecodeError]] = deque()
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), BATCH):
            ahead = images[start + len(waiting) : start + (1 + AHEAD) * BATCH]
            waiting.extend(pool.submit(_try_decode, path, size) for path in ahead)
            part = images[start : start + BATCH]
            decoded = [waiting.popleft().result() for _ in part]
            good = [pixels for pixels in decoded if not isinstance(pixels, DecodeError)]
            probabilities = iter(model.predict_on_batch(np.stack(good)) if good else ())
            for path, pixels in zip(part, decoded, strict=True):
                yield path, pixels if isinstance(pixels, DecodeError) else next(probabilities)


def _try_decode(path: Path, size: int) -> np.ndarray | DecodeError:
    try:
        return decode(path, size)
    except DecodeError as error:
        return error
