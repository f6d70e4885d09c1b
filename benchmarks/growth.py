"""How seconds and memory of chunked-resize, features and train grow with the number of images, and what a million would take."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import psutil
import yaml

from stages import annotate
from stages.common.images import layout
from stages.common.runtime import paths
from stages.common.runtime.plain_yaml import parse_yaml

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Path(__file__).parent / "results" / "growth.svg"
SIZES = (1_000, 5_000, 25_000)
MODEL = "backbone"
NETWORK = parse_yaml((ROOT / paths.PARAMETERS).read_text(encoding="utf-8"))[MODEL]["name"]
LABELS = 20

NOTES = f"""
The photographs, linked under as many names as needed, through the stages as processes: chunked-resize, features ({NETWORK},
random weights) and train (the head, solved twice: the second time with the validation part). *Memory*: the peak of resident
memory of the stage's process and of its largest worker, read twenty times a second. *Disk*: the size of the stage's outputs. A
million: by straight lines through the three measurements, memory of the stage included.

![seconds against images](growth.svg)
"""


class Cost(NamedTuple):
    """Seconds, resident memory in MB (stage and largest worker), and MB written."""

    seconds: float
    memory: float
    worker: float
    disk: float


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """One row a stage and a number of images, and one for a million by extrapolation. Draws the picture."""
    rows = []
    for images in SIZES:
        folder = work / str(images)
        prepare(photographs, folder, images)
        for stage, command, out in (
            ("chunked-resize", ["chunked_resize"], paths.RESIZED),
            ("features", ["features", MODEL], paths.features(MODEL)),
            ("train", ["train", MODEL], paths.model_file(MODEL).parent),
        ):
            rows.append({"stage": stage, "images": images, **_run(command, folder, folder / out)._asdict()})
        shutil.rmtree(folder)
    table = pd.DataFrame(rows).sort_values("stage", kind="stable")
    _draw(table)
    million = [_extrapolated(str(stage), part) for stage, part in table.groupby("stage", sort=False)]
    return pd.concat([table, pd.DataFrame(million)])


def prepare(photographs: Path, folder: Path, images: int) -> None:
    """Make a folder as annotate and split leave it, with links to photographs and random labels."""
    source = layout.images_folder(photographs)
    listed = annotate.present(annotate.read(photographs).table, source)["image"]
    data = folder / "photographs"
    (data / paths.MPII_IMAGES).mkdir(parents=True)
    names = [f"{number:06d}{Path(listed.iloc[number % len(listed)]).suffix}" for number in range(images)]
    for number, name in enumerate(names):
        (data / paths.MPII_IMAGES / name).symlink_to(source / listed.iloc[number % len(listed)])
    shutil.copy(layout.annotation_file(photographs), data)
    values = parse_yaml((ROOT / paths.PARAMETERS).read_text(encoding="utf-8"))
    values |= {"data": data.name, "weights": "random"}
    (folder / paths.PARAMETERS).write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / paths.IMAGE_LIST).parent.mkdir()
    (folder / paths.IMAGE_LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    part = np.resize(["train"] * 7 + ["validation", "test"], images)
    label = np.random.default_rng(0).integers(0, LABELS, images).astype(str)
    split = pd.DataFrame({"image": names, "part": part, "label": label, "video": "1"})
    split.to_csv(folder / paths.SPLIT, index=False)


def _run(command: list[str], folder: Path, out: Path) -> Cost:
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{command[0]}", *command[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peaks = [0, 0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks))
    watcher.start()
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds = time.perf_counter() - start
    watcher.join()
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Cost(seconds, peaks[0] / 1e6, peaks[1] / 1e6, written / 1e6)


def _watch(number: int, peaks: list[int]) -> None:
    """Update the highest resident memory of a process, and of any of its workers, in bytes, until it ends."""
    try:
        process = psutil.Process(number)
        while process.status() != psutil.STATUS_ZOMBIE:
            peaks[0] = max(peaks[0], process.memory_info().rss)
            for worker in process.children():
                try:
                    peaks[1] = max(peaks[1], worker.memory_info().rss)
                except psutil.Error:  # ended just now
                    continue
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return


def _extrapolated(stage: str, part: pd.DataFrame) -> dict[str, object]:
    """A million images, by straight lines; a worker's memory as measured."""
    lines = {key: np.polyfit(part["images"], part[key], 1) for key in ("seconds", "memory", "disk")}
    million = {key: float(np.polyval(line, 1_000_000)) for key, line in lines.items()}
    return {"stage": f"{stage}, computed", "images": 1_000_000, "worker": part["worker"].max()} | million


def _draw(table: pd.DataFrame) -> None:
    PICTURE.parent.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for stage, part in table.groupby("stage", sort=False):
        axes.plot(part["images"], part["seconds"], marker="o", label=str(stage))
    axes.set(xlabel="images", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    # The same bytes for the same numbers.
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)
