"""data/resized -> data/features/MODEL: what a frozen backbone makes of each image, computed once for all heads.

One chunk file a chunk of images: maps, (n, height, width, channels) float16, and pooled, (n, channels) float32, their
mean over height and width. Beside them lies the backbone itself, which train needs to assemble the whole model.
"""

import sys
import time
from pathlib import Path

import numpy as np

from stages.common import chunks, parameters, problem
from stages.common.backend import device, keras
from stages.common.files import new_folder, write_json
from stages.common.networks import BACKBONES, backbone
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.saving import save

RESIZED = Path("data/resized")
OUT = Path("data/features")
BACKBONE = "backbone.keras"
TIMING = Path("models/{}/timing/features.json")
BATCH = 32


def resolve(weights: str, drawn: bool) -> str:
    """What `auto` stands for: imagenet for photographs, random for the drawn sample."""
    if weights != "auto":
        return weights
    return "random" if drawn else "imagenet"


def extract(model: keras.Model, folder: Path, out: Path, stage: str) -> int:
    """Run `model`, images to maps, over all chunks of `folder` into chunk files of the same names in `out`.

    Returns:
        The number of images.

    Raises:
        Problem: a feature is not a number, or the system refused to write.
    """
    pool = keras.layers.GlobalAveragePooling2D()(model.output)
    both = keras.Model(model.input, [model.output, pool])
    paths = chunks.paths(folder)
    images = 0
    with progress(sum(len(chunks.names(path)) for path in paths), stage, "image") as bar:
        for path in paths:
            names, pixels = chunks.read(path, "pixels")
            maps = np.empty((len(names), *model.output.shape[1:]), np.float16)
            pooled = np.empty((len(names), maps.shape[-1]), np.float32)
            for start in range(0, len(names), BATCH):
                part = np.s_[start : start + BATCH]
                maps[part], pooled[part] = both.predict_on_batch(pixels[part])
                bar.update(len(pooled[part]))
            if not (np.isfinite(maps).all() and np.isfinite(pooled).all()):
                raise Problem(f"{stage}: the backbone's features of {path} are not finite; the weights do not fit it")
            chunks.write(out / path.name, names, {"maps": maps, "pooled": pooled})
            images += len(names)
    return images


def main() -> None:
    values = parameters.load()
    if len(sys.argv) != 2 or sys.argv[1] not in BACKBONES:
        raise Problem(f"usage: python -m stages.features {{{','.join(BACKBONES)}}}")
    name = sys.argv[1]
    if name == "xception" and values.resize.size < parameters.XCEPTION_LEAST:
        raise Problem(
            f"resize.size is {values.resize.size}; Xception takes images of {parameters.XCEPTION_LEAST} pixels or more"
        )
    stage = f"features-{name}"
    weights = resolve(values.weights, values.has(parameters.SAMPLE))
    print(f"{stage}: {weights} weights, on {device()}")
    start = time.perf_counter()
    with new_folder(OUT / name) as folder:
        rows = chunks.Rows(RESIZED, "pixels")
        model = backbone(name, rows.shape[0], weights, rows.read(list(rows.places)[:BATCH]))
        images = extract(model, RESIZED, folder, stage)
        save(model, folder / BACKBONE, [])
    write_json(Path(str(TIMING).format(name)), {"seconds": round(time.perf_counter() - start, 1), "images": images})


if __name__ == "__main__":
    problem.run(main)
