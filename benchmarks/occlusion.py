"""Whether heat maps show what a prediction rests on: the hottest tenth of each test image is occluded, or a random tenth.

    python -m benchmarks.occlusion NAME=CLONE [NAME=CLONE ...]

CLONE is a clone of this repository in which `dvc repro` has run. It writes benchmarks/results/occlusion.md.
"""

import argparse
from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.__main__ import RESULTS, hardware
from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import video_keys
from stages.common.evaluation.predictions import read_predictions
from stages.common.explanation.heat_maps import explained, heat_maps
from stages.common.prediction.classifier import Classifier, for_inference, load_classifier
from stages.common.runtime import errors, paths
from stages.common.runtime.files import write_text

SHARE = 0.1  # of an image's pixels
RANDOM = 8  # random places for each image
RESAMPLES = 2000

NOTES = f"""
*hottest*, *random*: the mean change of the predicted label's probability when {SHARE:.0%} of an image's pixels get the mean
colour of that image, those with most evidence in the heat map, or those of the same shape moved to a random place (mean of
{RANDOM}). *difference*: its 95 % interval is over videos, or over images where the data has none ({RESAMPLES} resamples).
*larger*: the share of images in which the hottest tenth lowers the probability more.
"""


def changes(classifier: Classifier) -> pd.DataFrame:
    """A row for each test image: its video, and the change of the predicted label's probability, hottest and random."""
    table = read_predictions(paths.predictions(classifier.file.parent.name))
    rows = Rows(paths.RESIZED.resolve(), "pixels")
    parts, model = explained(classifier.model, str(classifier.file)), for_inference(classifier.model)
    generator = np.random.default_rng(1)
    found = []
    for name, prediction in table[["image", "prediction"]].itertuples(index=False):
        (pixels,) = rows.read([name])
        label = classifier.labels.index(prediction)
        hottest = _hottest(heat_maps(parts, pixels[None])[0, label], pixels.shape[:2])
        shifts = generator.integers(0, pixels.shape[0], (RANDOM, 2))
        masks = [np.zeros_like(hottest), hottest, *(np.roll(hottest, tuple(shift), (0, 1)) for shift in shifts)]
        mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
        images = np.stack([np.where(mask[..., None], mean, pixels) for mask in masks])
        whole, hot, *random = model.predict_on_batch(images)[:, label]
        found.append((hot - whole, np.mean(random) - whole))
    keys = video_keys(table["image"], table["video"])
    return pd.DataFrame(found, columns=["hottest", "random"]).assign(video=keys.to_numpy())


def _hottest(heat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The `SHARE` of an image's pixels with most evidence, (height, width) bool."""
    height, width = shape
    values = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    hottest: np.ndarray = values >= np.quantile(values, 1 - SHARE)
    return hottest


def row(name: str, classifier: Classifier) -> dict[str, str | int]:
    table = changes(classifier)
    difference = table["hottest"] - table["random"]
    videos = difference.groupby(table["video"]).agg(["sum", "size"]).to_numpy()
    drawn = np.random.default_rng(1).integers(0, len(videos), (RESAMPLES, len(videos)))
    sums = videos[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return {
        "data": name,
        "model": classifier.file.parent.name,
        "images": len(table),
        "hottest": f"{table['hottest'].mean():+.3f}",
        "random": f"{table['random'].mean():+.3f}",
        "difference": f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})",
        "larger": f"{(difference < 0).mean():.0%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.occlusion", description=__doc__.splitlines()[0])
    parser.add_argument("clones", nargs="+", metavar="NAME=CLONE")
    rows = []
    for name, clone in (each.split("=", 1) for each in parser.parse_args().clones):
        with chdir(Path(clone)):
            rows.append(row(name, load_classifier(None)))
    markdown = pd.DataFrame(rows).to_markdown(index=False)
    text = f"# Occlusion of what heat maps mark\n\n{hardware()}\n\n{markdown}\n\n{NOTES.strip()}\n"
    write_text(RESULTS / "occlusion.md", text)
    print(text)


if __name__ == "__main__":
    errors.run(main)
