"""What the audit finds: planted near-copies by kind, planted wrong labels, and seconds and memory for 25,000 images."""

import io
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

from benchmarks.pipeline import ROOT, fresh_clone
from stages import annotate
from stages.common.audit import near_copies
from stages.common.dataset import chunks
from stages.common.dataset.splits import video_keys
from stages.common.images import layout
from stages.common.images.decoding import decode
from stages.common.runtime import paths
from stages.common.runtime.files import write_csv, write_json
from tests.conftest import set_parameters

PLANTED = 150  # copies of each kind
NOISE = 0.05  # fraction of wrong labels
MANY = 25_000
SIZE = 224

NOTES = f"""
*Copies*: of {PLANTED} photographs each, among all photographs of the folder. *Other pairs* are of two photographs and in two
videos: near-copies that were there before, frames of one scene, or errors of the audit: look at them. *Wrong labels*: {NOISE:.0%} of
the labels replaced by another one at random; cross-validation of the default model; the share of planted ones among as many
images as were planted, the most suspicious first. *{MANY:,} images*: random parts of the photographs, through the stage as a
process, start-up included.
"""


def _recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _cropped(image: Image.Image, fraction: float, generator: random.Random) -> Image.Image:
    width, height = (round(side * (1 - fraction)) for side in image.size)
    left, top = generator.randint(0, image.width - width), generator.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


KINDS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "recompressed, quality 25 to 60": lambda image, generator: _recompressed(image, generator.randint(25, 60)),
    "resized to 40 %": lambda image, _: image.resize((max(1, image.width * 2 // 5), max(1, image.height * 2 // 5))),
    "mirrored": lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped by 5 %": lambda image, generator: _cropped(image, 0.05, generator),
    "cropped by 10 %": lambda image, generator: _cropped(image, 0.1, generator),
    "cropped by 15 %": lambda image, generator: _cropped(image, 0.15, generator),
    "darker or brighter by a quarter": lambda image, generator: ImageEnhance.Brightness(image).enhance(
        generator.choice((0.75, 1.25))
    ),
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "mirrored, cropped by 5 %, recompressed": lambda image, generator: _recompressed(
        _cropped(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.05, generator), 50
    ),
}


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """Recall of each kind, pairs that were not planted, recall of wrong labels, and the cost of the stage."""
    listed = annotate.read(photographs).table
    listed = listed[listed["labelled"]].reset_index(drop=True)
    folder = layout.images_folder(photographs)
    pixels = np.stack([decode(folder / name, SIZE) for name in listed["image"]])
    return pd.DataFrame(
        [*_copies(listed, folder, pixels), _wrong_labels(listed, folder, work), *_cost(pixels, work / "many")]
    )


def _copies(listed: pd.DataFrame, folder: Path, pixels: np.ndarray) -> list[dict[str, Any]]:
    generator = random.Random(1)  # noqa: S311
    chosen = generator.sample(range(len(listed)), min(PLANTED, len(listed)))
    planted = []
    for change in KINDS.values():
        for place in chosen:
            with Image.open(folder / listed["image"].iloc[place]) as file:
                changed = change(file.convert("RGB"), generator)
            planted.append(np.asarray(changed.resize((SIZE, SIZE), Image.Resampling.LANCZOS)))
    images = np.concatenate([pixels, np.stack(planted)])
    source = [*range(len(listed)), *chosen * len(KINDS)]
    names = [str(number) for number in range(len(images))]
    small = near_copies.thumbnails(lambda part: images[[int(name) for name in part]], names, lambda _: None)
    pairs = near_copies.find(small, lambda _: None)
    found = set(zip(pairs["first"], pairs["second"], strict=True))
    rows: list[dict[str, Any]] = []
    for number, kind in enumerate(KINDS):
        first = len(listed) + number * len(chosen)
        hits = sum((place, first + which) in found for which, place in enumerate(chosen))
        rows.append({"what": f"copies found: {kind}", "value": hits / len(chosen)})
    videos = list(video_keys(listed["image"], listed["video"]))
    others = {
        (min(pair), max(pair))
        for pair in ((source[a], source[b]) for a, b in found)
        if videos[pair[0]] != videos[pair[1]]
    }
    rows.append({"what": f"other pairs of {len(listed)} photographs in two videos", "value": len(others)})
    return rows


def _wrong_labels(listed: pd.DataFrame, folder: Path, work: Path) -> dict[str, Any]:
    """The labels of a table, some of them wrong, through the pipeline."""
    generator = np.random.default_rng(1)
    labels = listed["activity"].to_numpy(dtype=object)
    wrong = generator.choice(len(labels), round(NOISE * len(labels)), replace=False)
    for place in wrong:
        labels[place] = generator.choice([label for label in np.unique(labels) if label != labels[place]])
    data = work / "noisy"
    for name in listed["image"]:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).symlink_to(folder / name)
    table = pd.DataFrame({"image": listed["image"], "label": labels, "group": listed["video"]})
    write_csv(data / "labels.csv", table)
    clone = fresh_clone(work / "clone")
    command = ["dvc", "exp", "run", "-q", "-S", f"data={data}", "models/dvc.yaml:cross-validate"]
    subprocess.run(command, cwd=clone, check=True, stdout=subprocess.DEVNULL)
    suspicious = pd.read_csv(clone / paths.suspicious_labels("backbone"), dtype=str, keep_default_na=False)
    first = set(suspicious["image"].head(len(wrong)))
    found = first & set(listed["image"].iloc[wrong])
    return {
        "what": f"wrong labels among the first {len(wrong)} named",
        "value": len(found) / len(wrong),
        "target": ">= 0.5",
    }


def _cost(pixels: np.ndarray, work: Path) -> list[dict[str, Any]]:
    """The stage on many images, in a folder as chunked-resize leaves it."""
    generator = np.random.default_rng(1)
    names = [f"{number:05d}.jpg" for number in range(MANY)]
    originals = work / "photographs/a"
    originals.mkdir(parents=True)
    Image.new("RGB", (640, 360)).save(work / "one.jpg")
    for name in names:
        os.link(work / "one.jpg", originals / name)
    for start in range(0, MANY, 64):
        part = names[start : start + 64]
        rows = np.stack([_part_of(pixels[generator.integers(len(pixels))], generator) for _ in part])
        chunks.write(work / paths.RESIZED / f"{start // 64:05d}.h5", [f"a/{name}" for name in part], {"pixels": rows})
    parts = generator.choice(["train", "validation", "test"], MANY, p=[0.7, 0.15, 0.15])
    split = pd.DataFrame({"image": [f"a/{name}" for name in names], "part": parts, "label": "a", "video": ""})
    write_csv(work / paths.SPLIT, split)
    zero = dict.fromkeys(("images", "labelled", "videos", "missing_images", "skipped_files"), 0)
    write_json(work / paths.ANNOTATE_METRICS, {"layout": "folders", **zero})
    write_json(work / paths.RESIZE_METRICS, {"bad": 0})
    shutil.copy(ROOT / paths.PARAMETERS, work)
    set_parameters(work / paths.PARAMETERS, {"data": "photographs"})
    # Not getrusage: it counts what the benchmark itself had in memory when it started the process.
    code = "import runpy, pathlib; runpy.run_module('stages.audit', run_name='__main__'); print(pathlib.Path('/proc/self/status').read_text())"
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    memory = int(next(line for line in ended.stdout.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000
    return [
        {"what": f"seconds for {MANY:,} images", "value": seconds, "target": "<= 10"},
        {"what": f"MB at the peak for {MANY:,} images", "value": memory},
    ]


def _part_of(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    side = int(generator.integers(60, 100))
    left, top = generator.integers(0, SIZE - side, 2)
    part = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
