"""Label images with a trained model, and show what in them the label rests on.

python -m commands.predict PATH... [--model NAME|FILE] [--csv OUT] [--top N] [--explain FOLDER]
"""

import argparse
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.evaluation.predictions import prediction_table
from stages.common.explanation.heat_maps import explained
from stages.common.explanation.pictures import Pictures
from stages.common.images import layout
from stages.common.images.decoding import DecodeError
from stages.common.prediction.classifier import Classifier, label_images, load_classifier
from stages.common.runtime import errors
from stages.common.runtime.errors import UserError, printable
from stages.common.runtime.files import destination, published_file, writing
from stages.common.runtime.progress import progress

ROWS = 64  # of the table, written at once
LISTED = 20  # images; of more, only a summary is printed


def find_images(places: list[Path]) -> list[Path]:
    """The images in `places`: each file, and of each folder all files in it and below that have an image's suffix."""
    found: list[Path] = []
    for path in places:
        if path.is_dir():
            found += sorted(path / inner for inner in layout.image_files(path))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


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
    parser.add_argument("--top", type=_count, default=5, metavar="N", help="labels to print of each image (default: 5)")
    parser.add_argument(
        "--explain",
        type=Path,
        metavar="FOLDER",
        help="also write each image with a heat map of what its label rests on",
    )
    arguments = parser.parse_args()
    images = find_images(arguments.paths)
    if not images:
        raise UserError(
            f"{', '.join(map(str, arguments.paths))}: no image found; expected files ending in {' '.join(sorted(layout.SUFFIXES))}"
        )
    target = csv_target(arguments.csv) if arguments.csv else None
    if target and target.exists() and target in map(Path, map(os.path.realpath, images)):
        raise UserError(f"--csv is {str(arguments.csv)!r}, one of the images; expected another file")
    if arguments.explain and arguments.explain.is_file():
        raise UserError(f"--explain is {str(arguments.explain)!r}, a file; expected the name of a folder")
    classifier = load_classifier(arguments.model)
    pictures = None
    if arguments.explain:
        pictures = Pictures(arguments.explain, explained(classifier.model, str(classifier.file)))
    with _table(target) as table:
        _predict(classifier, images, arguments.top, table, pictures)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1")
    return int(text)


def csv_target(path: Path) -> Path:
    """Where a table for `path` is written: links are followed.

    Raises:
        UserError: a folder, or a place that can't be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return path  # a device, or a pipe, whose links lead nowhere
    if path.is_dir():
        raise UserError(f"--csv is {str(path)!r}, a folder; expected the name of a file to write")
    return destination(path)


Table = Callable[[pd.DataFrame, bool], None]


@contextmanager
def _table(target: Path | None) -> Iterator[Table | None]:
    """A function that writes rows, with or without a header: to a file, which is whole or absent, or to a device or pipe."""
    if target is None:
        yield None
        return
    regular = target.is_file() or not target.exists()
    with ExitStack() as stack:
        path = stack.enter_context(published_file(target)) if regular else target
        with writing(target):
            # Names of files that are not UTF-8 keep their bytes.
            file = stack.enter_context(path.open("w", encoding="utf-8", errors="surrogateescape", newline=""))

        def write(rows: pd.DataFrame, header: bool) -> None:
            with writing(target):
                rows.to_csv(file, header=header, index=False, lineterminator="\n")

        yield write
        with writing(target):
            file.close()


def _predict(
    classifier: Classifier,
    images: list[Path],
    top: int,
    table: Table | None,
    pictures: Pictures | None,
) -> None:
    """Print the labels of each image, or of many images a summary, and write table and pictures as they are labelled."""
    found: Counter[str] = Counter()
    labels = classifier.labels
    few = len(images) <= LISTED
    labelled = label_images(classifier.model, images)
    with progress(len(images), "predict", "image", disable=few) as bar:
        while part := list(itertools.islice(labelled, ROWS)):
            good: dict[str, np.ndarray] = {}
            for path, result in part:
                if isinstance(result, DecodeError):
                    bar.write(printable(f"{path}: skipped: {result}"), file=sys.stderr)
                    continue
                good[str(path)] = result
                if pictures:
                    pictures.write(path, result)
                if few:
                    print(printable(f"{path}: {_best(result, labels, top)}"))
            if good:
                rows = prediction_table(pd.DataFrame({"image": list(good)}), np.stack(list(good.values())), labels)
                if table:
                    table(rows, not found)
                found.update(labels[number] for number in np.stack(list(good.values())).argmax(1))
            bar.update(len(part))
    if not found:
        raise UserError("none of the images could be decoded")
    if not few:
        for label, count in found.most_common():
            print(printable(f"{label}: {_number(count, 'image')}"))
    print(f"{_number(found.total(), 'image')} labelled, {len(images) - found.total()} skipped", file=sys.stderr)
    if pictures:
        print(
            f"{_number(pictures.count, 'picture')} in {pictures.folder}: yellow is where the evidence for the label is",
            file=sys.stderr,
        )
    if not few and not table:
        print("for the label of each image: --csv OUT", file=sys.stderr)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _best(probabilities: np.ndarray, labels: list[str], top: int) -> str:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return "; ".join(f"{labels[number]} {probabilities[number]:.3f}" for number in order)


if __name__ == "__main__":
    errors.run(main)
