"""Exported models against Keras: size, latency of one image, throughput, and what another way of resizing changes.

    python -m benchmarks.export [--models NAME ...] [--photographs FOLDER]

Models that were trained here. It writes benchmarks/results/export.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from benchmarks.__main__ import RESULTS, hardware
from stages.common.backbones.backbone import inline
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.export.formats import FORMATS, Run, quiet
from stages.common.export.graph import exportable
from stages.common.export.metadata import describe
from stages.common.images.decoding import decode
from stages.common.images.layout import image_files
from stages.common.prediction.classifier import Classifier, load_classifier
from stages.common.runtime import errors
from stages.common.runtime.files import write_text

ROUNDS, SECONDS = 15, 30  # the latter ends it early, after no fewer than MIN_ROUNDS
MIN_ROUNDS = 5
BATCH = 32
PHOTOGRAPHS = 200

NOTES = f"""
*Keras* is the model as `predict` runs it: batch normalisation folded, `predict_on_batch`. All engines take one batch in turn,
{MIN_ROUNDS} to {ROUNDS} rounds, until {SECONDS} seconds have passed, after one that does not count; a ratio is the median over the rounds of that round's ratio, as other programs ran
at the same time. *Faster at 1*: Keras's time for one image over the format's. *Faster at {BATCH}*: the same for a batch of {BATCH}.
"""


def measure(classifier: Classifier, work: Path) -> pd.DataFrame:
    """One row for each format: MB, and how many times as fast as Keras it is."""
    folded = fold_batch_norm(inline(classifier.model))
    engines: dict[str, Run] = {"Keras": folded.predict_on_batch}
    sizes = {"Keras": classifier.file.stat().st_size}
    for name, form in FORMATS.items():
        path = work / f"{classifier.model.name}-{name}{form.suffix}"
        if not form.suffix:
            path.mkdir()
        with quiet():
            form.write(exportable(classifier.model), path, describe(classifier))
            engines[name] = form.start(path)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes[name] = sum(file.stat().st_size for file in files)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *classifier.model.input_shape[1:]), dtype=np.uint8)
    alone, together = (_seconds(engines, images[:count]) for count in (1, BATCH))
    return pd.DataFrame(
        {
            "model": classifier.file.parent.name,
            "format": name,
            "MB": sizes[name] / 1e6,
            "ms for one": 1e3 * statistics.median(alone[name]),
            "faster at 1": _ratio(alone, name),
            "images/s in batches": BATCH / statistics.median(together[name]),
            f"faster at {BATCH}": _ratio(together, name),
        }
        for name in engines
    )


def _seconds(engines: dict[str, Run], images: np.ndarray) -> dict[str, list[float]]:
    """Of each engine for one batch, in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    began = time.perf_counter()
    for number in range(ROUNDS + 1):
        if number > MIN_ROUNDS and time.perf_counter() - began > SECONDS:
            break
        for name, run in engines.items():
            start = time.perf_counter()
            run(images)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    return statistics.median(one / other for one, other in zip(seconds["Keras"], seconds[name], strict=True))


def by_pillow(path: Path, size: int) -> np.ndarray:
    """A photograph as the example of docs/export.md reads it."""
    photograph = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(photograph.resize((size, size), Image.Resampling.LANCZOS))


def resized(classifier: Classifier, paths: list[Path]) -> dict[str, Any]:
    """How much the probabilities change if Pillow reads the photographs instead of `decode`."""
    size = classifier.model.input_shape[1]
    readers: tuple[Callable[[Path, int], np.ndarray], ...] = (decode, by_pillow)
    ours, theirs = (
        classifier.model.predict(np.stack([read(path, size) for path in paths]), verbose=0) for read in readers
    )
    each = np.abs(ours - theirs).max(axis=1)
    return {
        "model": classifier.file.parent.name,
        "photographs": len(paths),
        "median": np.median(each),
        "95 of 100": np.quantile(each, 0.95),
        "largest": each.max(),
        "same label": (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["backbone"], metavar="NAME")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="to compare ways of resizing on")
    arguments = parser.parse_args()
    classifiers = [load_classifier(name) for name in arguments.models]
    with tempfile.TemporaryDirectory() as work:
        table = pd.concat([measure(classifier, Path(work)) for classifier in classifiers])
    text = f"# Export\n\n{hardware()}\n\n{table.to_markdown(index=False, floatfmt='.3g')}\n\n{NOTES.strip()}\n"
    if arguments.photographs:
        found = sorted(arguments.photographs / inner for inner in image_files(arguments.photographs))[:PHOTOGRAPHS]
        differences = pd.DataFrame(resized(classifier, found) for classifier in classifiers)
        text += f"\nLargest difference of a probability, read by Pillow and by this project:\n\n{differences.to_markdown(index=False, floatfmt='.3g')}\n"
    write_text(RESULTS / "export.md", text)
    print(text)


if __name__ == "__main__":
    errors.run(main)
