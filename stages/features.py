"""data/resized -> data/features/MODEL: what a frozen backbone makes of each image, computed once for all heads of a kind.

One chunk file a chunk of images, with what the chosen head takes: pooled, (n, channels) float32, the mean over height and
width, or maps, (n, height, width, channels) float16. Beside them lies the backbone itself, which train needs to assemble
the whole model.
"""

import re
import sys
import time
from pathlib import Path

import numpy as np

from stages.common import chunks, parameters, problem
from stages.common.backend import device, keras
from stages.common.files import lock, new_folder, write_json
from stages.common.networks import BACKBONES, TAKES, backbone, folded
from stages.common.parameters import Pretrained
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.resuming import code, publish, resumable, state
from stages.common.saving import save

RESIZED = Path("data/resized")
OUT = Path("data/features")
BACKBONE = "backbone.keras"
TIMING = "models/{}/timing/features.json"
SECONDS = "seconds.txt"
BATCH = 32


def resolve(weights: str, drawn: bool) -> str:
    """What `auto` stands for: imagenet for photographs, random for the drawn sample."""
    if weights != "auto":
        return weights
    return "random" if drawn else "imagenet"


def extract(model: keras.Model, folder: Path, out: Path, dataset: str, stage: str) -> int:
    """Run `model`, images to maps, over all chunks of `folder` into chunk files of the same names in `out`.

    Chunks that are there already are kept. `dataset` is pooled or maps.

    Returns:
        The number of images.

    Raises:
        Problem: a feature is not a number, or the system refused to write.
    """
    model = folded(model)
    dtype: type[np.floating] = np.float16
    if dataset == "pooled":
        dtype = np.float32
        model = keras.Model(model.input, keras.layers.GlobalAveragePooling2D(dtype="float32")(model.output))
    images = {path: chunks.names(path) for path in chunks.paths(folder)}
    left = [path for path in images if not (out / path.name).exists()]
    total = sum(map(len, images.values()))
    if done := len(images) - len(left):
        print(f"{stage}: going on: {done} of {len(images)} chunks are there already")
    with progress(total, stage, "image", initial=total - sum(len(images[path]) for path in left)) as bar:
        for path in left:
            start = time.perf_counter()
            names, pixels = chunks.read(path, "pixels")
            values = np.empty((len(names), *model.output.shape[1:]), dtype)
            for first in range(0, len(names), BATCH):
                part = np.s_[first : first + BATCH]
                values[part] = model.predict_on_batch(pixels[part])
                bar.update(len(values[part]))
            if not np.isfinite(values).all():
                raise Problem(f"{stage}: the backbone's features of {path} are not finite; the weights do not fit it")
            chunks.write(out / path.name, names, {dataset: values})
            with (out / SECONDS).open("a", encoding="utf-8") as file:
                file.write(f"{time.perf_counter() - start:.3f}\n")
    return total


def main() -> None:
    values = parameters.load()
    if len(sys.argv) != 2 or sys.argv[1] not in BACKBONES:
        raise Problem(f"usage: python -m stages.features {{{','.join(BACKBONES)}}}")
    name = sys.argv[1]
    stage = f"features-{name}"
    with lock(stage):
        weights = resolve(values.weights, values.has(parameters.SAMPLE))
        print(f"{stage}: {weights} weights, on {device()}")
        _run(stage, name, getattr(values, name), weights)


def _run(stage: str, name: str, section: Pretrained, weights: str) -> None:
    dataset = TAKES[section.head]
    start = time.perf_counter()
    out = OUT / name
    inputs = state([*chunks.paths(RESIZED), Path(weights)])
    with resumable(out, code(), device(), section.input_size, section.precision, dataset, weights, inputs) as done:
        earlier = _seconds(done)
        rows = chunks.Rows(RESIZED, "pixels")
        examples = rows.read(list(rows.places)[:BATCH])
        model = backbone(name, rows.shape[0], section.input_size, weights, examples, section.precision)
        images = extract(model, RESIZED, done, dataset, stage)
        save(model, done / BACKBONE, [])
        with new_folder(out) as folder:
            publish([*chunks.paths(done), done / BACKBONE], folder)
        seconds = round(earlier + time.perf_counter() - start, 1)
        write_json(Path(TIMING.format(name)), {"seconds": seconds, "images": images})


def _seconds(done: Path) -> float:
    """What the chunks of earlier, interrupted runs took."""
    path = done / SECONDS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return sum(float(line) for line in text.splitlines() if re.fullmatch(r"\d+\.\d{3}", line))


if __name__ == "__main__":
    problem.run(main)
