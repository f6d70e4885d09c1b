"""Label images with a trained model: python -m stages.predict PATH... [--model NAME|FILE] [--csv OUT]."""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common import parameters, problem
from stages.common.backend import keras
from stages.common.decoding import BadImage, decode
from stages.common.files import write_csv
from stages.common.problem import Problem
from stages.common.saving import load

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
BATCH = 32
SHOWN = 5


def find(paths: list[Path]) -> list[Path]:
    """The images meant by `paths`: a file as it is, a folder for all files with an image's ending in it and below."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(inner for inner in path.rglob("*") if inner.suffix.lower() in ENDINGS)
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def predict(model: keras.Model, images: list[Path]) -> Iterator[tuple[Path, np.ndarray | BadImage]]:
    """Each image in order, with the probability of each label, (labels,) float32, or why it could not be decoded."""
    size = model.input_shape[1]
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            decoded = list(pool.map(lambda path: _try_decode(path, size), part))
            good = [pixels for pixels in decoded if not isinstance(pixels, BadImage)]
            probabilities = iter(model.predict_on_batch(np.stack(good)) if good else ())
            for path, pixels in zip(part, decoded, strict=True):
                yield path, pixels if isinstance(pixels, BadImage) else next(probabilities)


def _try_decode(path: Path, size: int) -> np.ndarray | BadImage:
    try:
        return decode(path, size)
    except BadImage as error:
        return error


def _model_file(name: str | None) -> Path:
    if name is None:
        name = parameters.load().model
    return Path(f"models/{name}/model.keras") if name in parameters.MODELS else Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description="Label images with a trained model.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a model that was trained here, or a .keras file (default: params.yaml's model)",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="OUT", help="also write image, prediction, probability and each label's probability"
    )
    arguments = parser.parse_args()
    model, labels = load(_model_file(arguments.model))
    if len(labels) != model.output_shape[-1]:
        raise Problem(f"{arguments.model}: names {len(labels)} labels; expected a model that a train stage wrote")
    if arguments.csv and (arguments.csv.is_dir() or not arguments.csv.name):
        raise Problem(f"--csv is {str(arguments.csv)!r}, a folder; expected the name of a file to write")
    images = find(arguments.paths)
    if not images:
        raise Problem(
            f"{', '.join(map(str, arguments.paths))}: no image in it; expected files ending in {' '.join(sorted(ENDINGS))}"
        )
    names: list[str] = []
    rows: list[np.ndarray] = []
    for path, result in predict(model, images):
        if isinstance(result, BadImage):
            print(f"{path}: bad image: {result}", file=sys.stderr)
            continue
        names.append(str(path))
        rows.append(result)
        best = np.argsort(-result, kind="stable")[:SHOWN]
        print(f"{path}: {'; '.join(f'{labels[number]} {result[number]:.3f}' for number in best)}")
    bad = len(images) - len(names)
    print(f"{len(names)} images labelled, {bad} bad", file=sys.stderr)
    if not names:
        raise Problem("none of the images could be decoded")
    if arguments.csv:
        write_csv(arguments.csv, table(names, np.stack(rows), labels))


def table(names: list[str], probabilities: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """One row an image: image, prediction, probability, and then one column a label."""
    best = probabilities.argmax(axis=1)
    first = {"image": names, "prediction": np.array(labels)[best], "probability": probabilities.max(axis=1)}
    return pd.concat([pd.DataFrame(first), pd.DataFrame(probabilities, columns=labels)], axis=1).round(6)


if __name__ == "__main__":
    problem.run(main)
