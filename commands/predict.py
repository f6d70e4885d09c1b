"""Label images with a trained model: python -m commands.predict PATH... [--model NAME|FILE] [--csv OUT]."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.evaluation.predictions import prediction_table
from stages.common.images.decoding import DecodeError, decode
from stages.common.networks.serialization import load
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError, printable
from stages.common.runtime.files import new_file, write_error

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
BATCH = 32
SHOWN = 5


def find_images(places: list[Path]) -> list[Path]:
    """The images in `places`: each file, and of each folder all files in it and below that have an image's suffix."""
    found: list[Path] = []
    for path in places:
        if path.is_dir():
            found += sorted(inner for inner in path.rglob("*") if inner.suffix.lower() in SUFFIXES)
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def label_images(model: keras.Model, images: list[Path]) -> Iterator[tuple[Path, np.ndarray | DecodeError]]:
    """Each image in order, with the probability of each label, (labels,) float32, or why it could not be decoded."""
    size = model.input_shape[1]
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            decoded = list(pool.map(lambda path: _try_decode(path, size), part))
            good = [pixels for pixels in decoded if not isinstance(pixels, DecodeError)]
            probabilities = iter(model.predict_on_batch(np.stack(good)) if good else ())
            for path, pixels in zip(part, decoded, strict=True):
                yield path, pixels if isinstance(pixels, DecodeError) else next(probabilities)


def _try_decode(path: Path, size: int) -> np.ndarray | DecodeError:
    try:
        return decode(path, size)
    except DecodeError as error:
        return error


def _model_file(name: str | None) -> Path:
    if name is None:
        name = parameters.load().model
    return paths.model_file(name) if name in parameters.MODELS else Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m commands.predict", description="Label images with a trained model."
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a model trained here, or a .keras file (default: the model in params.yaml)",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="OUT", help="also write image, prediction, probability and each label's probability"
    )
    arguments = parser.parse_args()
    images = find_images(arguments.paths)
    if not images:
        raise UserError(
            f"{', '.join(map(str, arguments.paths))}: no image found; expected files ending in {' '.join(sorted(SUFFIXES))}"
        )
    target = csv_target(arguments.csv) if arguments.csv else None
    if target in [Path(os.path.realpath(image)) for image in images]:
        raise UserError(f"--csv is {str(arguments.csv)!r}, one of the images; expected another file")
    file = _model_file(arguments.model)
    model, labels = load(file)
    if model.output_shape[1:] != (len(labels),):
        raise UserError(
            f"{file}: {len(labels)} labels for an output of {model.output_shape[1:]}; expected a model that a train stage wrote"
        )
    table = _predict(model, labels, images)
    if target:
        _write(table, target)


def csv_target(path: Path) -> Path:
    """Where a table for `path` is written: links are followed.

    Raises:
        UserError: a folder, or a place that can't be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return path  # a device, or a pipe, whose links lead nowhere
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"--csv is {str(path)!r}, a folder; expected the name of a file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise write_error(path, error) from error
    return target


def _write(table: pd.DataFrame, target: Path) -> None:
    """Write `table` atomically, or to a device or pipe. Names of files that are not UTF-8 keep their bytes."""
    text = table.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogateescape")
    if target.is_file() or not target.exists():
        with new_file(target) as temporary:
            temporary.write_bytes(text)
        return
    try:
        target.write_bytes(text)
    except OSError as error:
        raise write_error(target, error) from error


def _predict(model: keras.Model, labels: list[str], images: list[Path]) -> pd.DataFrame:
    """Print the labels of each image. Returns the table of all that could be decoded."""
    names: list[str] = []
    rows: list[np.ndarray] = []
    for path, result in label_images(model, images):
        if isinstance(result, DecodeError):
            print(printable(f"{path}: skipped: {result}"), file=sys.stderr)
            continue
        names.append(str(path))
        rows.append(result)
        best = np.argsort(-result, kind="stable")[:SHOWN]
        print(printable(f"{path}: {'; '.join(f'{labels[number]} {result[number]:.3f}' for number in best)}"))
    bad = len(images) - len(names)
    print(f"{len(names)} images labelled, {bad} skipped", file=sys.stderr)
    if not names:
        raise UserError("none of the images could be decoded")
    return prediction_table(pd.DataFrame({"image": names}), np.stack(rows), labels)


if __name__ == "__main__":
    errors.run(main)
