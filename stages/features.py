"""data/resized -> data/features/MODEL: what a frozen backbone makes of each image, computed once for all heads.

One chunk file a chunk of images: maps, (n, height, width, channels) float16, and pooled, (n, channels) float32, their
mean over height and width. Beside them lies the backbone itself, which train needs to assemble the whole model.
"""

import re
import sys
import time
from pathlib import Path

import numpy as np

from stages.common import chunks, parameters, problem
from stages.common.backend import device, keras
from stages.common.files import lock, new_folder, write_json
from stages.common.networks import BACKBONES, backbone
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


def extract(model: keras.Model, folder: Path, out: Path, stage: str) -> int:
    """Run `model`, images to maps, over all chunks of `folder` into chunk files of the same names in `out`.

    Chunks that are there already are kept.

    Returns:
        The number of images.

    Raises:
        Problem: a feature is not a number, or the system refused to write.
    """
    pool = keras.layers.GlobalAveragePooling2D()(model.output)
    both = keras.Model(model.input, [model.output, pool])
    images = {path: chunks.names(path) for path in chunks.paths(folder)}
    left = [path for path in images if not (out / path.name).exists()]
    total = sum(map(len, images.values()))
    if done := len(images) - len(left):
        print(f"{stage}: going on: {done} of {len(images)} chunks are there already")
    with progress(total, stage, "image", initial=total - sum(len(images[path]) for path in left)) as bar:
        for path in left:
            start = time.perf_counter()
            names, pixels = chunks.read(path, "pixels")
            maps = np.empty((len(names), *model.output.shape[1:]), np.float16)
            pooled = np.empty((len(names), maps.shape[-1]), np.float32)
            for first in range(0, len(names), BATCH):
                part = np.s_[first : first + BATCH]
                maps[part], pooled[part] = both.predict_on_batch(pixels[part])
                bar.update(len(pooled[part]))
            if not (np.isfinite(maps).all() and np.isfinite(pooled).all()):
                raise Problem(f"{stage}: the backbone's features of {path} are not finite; the weights do not fit it")
            chunks.write(out / path.name, names, {"maps": maps, "pooled": pooled})
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
        _run(stage, name, getattr(values, name).input_size, weights)


def _run(stage: str, name: str, input_size: int, weights: str) -> None:
    start = time.perf_counter()
    out = OUT / name
    inputs = state([*chunks.paths(RESIZED), Path(weights)])
    with resumable(out, code(), device(), input_size, weights, inputs) as done:
        earlier = _seconds(done)
        rows = chunks.Rows(RESIZED, "pixels")
        model = backbone(name, rows.shape[0], input_size, weights, rows.read(list(rows.places)[:BATCH]))
        images = extract(model, RESIZED, done, stage)
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
