"""The stage chunked-resize against benchmarks/competitors.py: speed, and closeness to a resized full decode."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import yaml

from benchmarks import competitors
from benchmarks.competitors import SETTINGS, SIZE
from benchmarks.photographs import make_photographs, psnr
from stages import chunked_resize
from stages.common.images import layout
from stages.common.images.decoding import decode
from stages.common.runtime import paths
from stages.common.runtime.plain_yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 64
CORES = 2
REPEATS = 5
MIN_IMAGES = 1000  # a repetition on both cores: some seconds
SAMPLE = 250  # images a repetition on one core
MADE = 64  # photographs of which the sets of one size are made

Result = TypeVar("Result")

NOTES = f"""\
Both ways of a row were measured in turn, {REPEATS} times after a first run that is not counted; images per second are medians, and
`ratio` is ours / theirs. PSNR (dB; median and worst image) is relative to the whole photograph decoded by Pillow and resized by
Lanczos; the worst of ours is expected at 44 or more. All results are {SIZE} x {SIZE} except img2dataset's.

- **photographs** are unchanged; **1280x720** and **1920x1080** are made of the {MADE} largest files, by Lanczos, as 4:2:0 JPEGs
  whose quality, one of two neighbours, is chosen for a mean of 500 KB, which is MPII's, and again of 1 MB (100, where even that
  makes less: the set's name has the mean).
- **stage**: `chunked_resize.resize` on {CORES} processes, chunk files written and synced. The others write nothing.
- **notebooks**: Pillow, decoded whole, Lanczos, one process. In the row of **processes** both start as a Python of their own.
- **img2dataset** (`pip install --no-deps img2dataset==1.47.0 && pip install "albumentations<2" "opencv-python-headless<5" fire
  webdataset exifread-nocycle dataclasses wandb`, Python 3.12 or older): its `Resizer` on {CORES} processes. It can't make a
  square of the whole photograph: `keep_ratio_largest` is its fastest way (fewer pixels than ours), `area` its only filter that
  does not alias. It always makes a JPEG of the result: here that is skipped, for speed and PSNR. Its PSNR is relative to
  Pillow's {SIZE}-pixel image of the same shape.
- **tf.data**: `map` with AUTOTUNE on {CORES} cores; `decode_jpeg` with our choice of `ratio`, and `dct_method` INTEGER_ACCURATE
  (INTEGER_FAST is no faster and up to 6 dB worse); `lanczos3` is its only filter of equal PSNR, `area` its fastest.
- **decode** and its alternatives: one process. The **floor** is libjpeg-turbo at scale 1/8, which is little more than reading
  the Huffman codes. The rows below it are what would be faster, or was: `decode` with that constant, and Pillow's filters on what
  libjpeg-turbo has reduced as much as for `decode`.
"""


class Speed(NamedTuple):
    """Images a second, and the PSNR in dB of each image."""

    rate: float
    psnr: list[float]


class Pools(NamedTuple):
    """Processes in which the ways run.

    `alone` and `tf` have one process each: a process that has loaded TensorFlow should not start others by fork.
    `img2dataset` runs nothing else: after work with large arrays, such as PSNR's, it is up to a fifth faster than in new
    processes, as malloc then keeps large blocks. `judges` compute PSNR.
    """

    alone: Executor
    tf: Executor
    img2dataset: Executor
    judges: Executor


@contextmanager
def _pools() -> Iterator[Pools]:
    spawn = get_context("spawn")
    with ExitStack() as stack:
        yield Pools(
            *(
                stack.enter_context(ProcessPoolExecutor(processes, spawn, _silence))
                for processes in (1, 1, CORES, CORES)
            )
        )


def _silence() -> None:
    """Hide progress bars, and what TensorFlow writes to stderr from C++ when it is imported."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def rates(ways: dict[str, Callable[[], int]], out: Path | None = None) -> dict[str, float]:
    """Images a second of each way: medians of several runs of all of them in turn.

    A way returns the number of its images. What it writes into the folder `out` is removed after each run, untimed.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(REPEATS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            images = way()
            if run:  # the first one starts processes and fills caches
                found[name].append(images / (time.perf_counter() - start))
            if out:
                shutil.rmtree(out, ignore_errors=True)
    return {name: median(values) for name, values in found.items()}


def _result(executor: Executor, work: Callable[..., Result], *arguments: Any) -> Result:
    return executor.submit(work, *arguments).result()


def _by_stage(files: list[Path], out: Path) -> int:
    out.mkdir()
    chunked_resize.resize({file.name: file for file in files}, SIZE, CHUNK, out, CORES)
    return len(files)


def _one_by_one(way: Callable[[Path], object], files: list[Path]) -> int:
    for file in files:
        way(file)
    return len(files)


def _line(photographs: str, ways: str, ours: Speed, theirs: Speed, target: float | None = None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "photographs": photographs,
        "compared": ways,
        "ours": ours.rate,
        "theirs": theirs.rate,
        "ratio": ours.rate / theirs.rate,
        "target": target,
    }
    for owner, values in (("our", ours.psnr), ("their", theirs.psnr)):
        line |= {f"{owner}_psnr": median(values), f"{owner}_worst": min(values)} if values else {}
    return line


def _on_both_cores(
    title: str, files: list[Path], work: Path, targets: dict[str, float], pools: Pools
) -> list[dict[str, Any]]:
    """The stage against all that makes squares of photographs."""
    many = files * -(-MIN_IMAGES // len(files))
    parts = [many[start : start + CHUNK] for start in range(0, len(many), CHUNK)]
    ways: dict[str, Callable[[], int]] = {
        "stage": partial(_result, pools.alone, _by_stage, many, work / "out"),
        "notebooks": partial(_result, pools.alone, _one_by_one, competitors.whole, files),
    }
    pixels: dict[str, Iterable[np.ndarray]] = {"stage": pools.judges.map(decode, files, repeat(SIZE), chunksize=CORES)}
    if find_spec("img2dataset"):
        ways["img2dataset"] = lambda: sum(pools.img2dataset.map(_one_by_one, repeat(competitors.img2dataset), parts))
        pixels["img2dataset"] = pools.judges.map(competitors.img2dataset, files, chunksize=CORES)
    for method in ("lanczos3", "area"):
        ways[f"tf.data {method}"] = partial(_result, pools.tf, competitors.tf_data, tuple(many), method)
        pixels[f"tf.data {method}"] = _result(pools.tf, competitors.tf_data_pixels, tuple(files), method)
    close = {way: list(pools.judges.map(psnr, files, results, chunksize=CORES)) for way, results in pixels.items()}
    speeds = {way: Speed(rate, close.get(way, [])) for way, rate in rates(ways, work / "out").items()}
    ours = speeds.pop("stage")
    lines = [_line(title, f"stage / {way}", ours, theirs, targets.get(way)) for way, theirs in speeds.items()]
    if "img2dataset" not in speeds:
        lines.append({"photographs": title, "compared": "stage / img2dataset: not installed"})
    return lines


def _on_one_core(title: str, files: list[Path], target: float | None, pools: Pools) -> list[dict[str, Any]]:
    """`decode` against the floor, and against what would be faster."""
    files = files[:: -(-len(files) // SAMPLE)]
    many = files * -(-SAMPLE // len(files))
    ways: dict[str, Callable[[], int]] = {
        name: partial(_result, pools.alone, _one_by_one, way, many)
        for name, way in {"floor": competitors.floor, **SETTINGS}.items()
    }
    close = {name: list(pools.judges.map(psnr, files, pools.judges.map(way, files))) for name, way in SETTINGS.items()}
    speeds = {way: Speed(rate, close.get(way, [])) for way, rate in rates(ways).items()}
    ours = speeds.pop("decode")
    return [
        _line(title, f"decode / {way}", ours, theirs, target if way == "floor" else None)
        for way, theirs in speeds.items()
    ]


def _as_processes(photographs: Path, files: list[Path], work: Path, target: float) -> dict[str, Any]:
    """The whole stage, its start included, against the notebooks' way."""
    folder = work / "stage"
    values = parse_yaml((ROOT / paths.PARAMETERS).read_text(encoding="utf-8"))
    values |= {"data": str(photographs.resolve()), "resize": {"size": SIZE, "chunk": CHUNK, "max_bad": 0.0}}
    (folder / paths.IMAGE_LIST).parent.mkdir(parents=True)
    (folder / paths.IMAGE_LIST).write_text("".join(f"{file.name}\n" for file in files), encoding="utf-8")
    (folder / paths.PARAMETERS).write_text(yaml.safe_dump(values), encoding="utf-8")

    def run(*arguments: str) -> int:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return len(files)

    speeds = rates(
        {
            "stage": lambda: run("-m", "stages.chunked_resize"),
            "notebooks": lambda: run("-c", competitors.NOTEBOOK, str(files[0].parent.resolve())),
        },
        folder / paths.RESIZED,
    )
    ours, theirs = (Speed(rate, []) for rate in speeds.values())
    return _line("photographs", "stage / notebooks, as processes", ours, theirs, target)


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """All comparisons, one row each; takes about twenty minutes on two cores with a thousand photographs.

    Args:
        photographs: a folder in MPII's layout.
        work: an empty folder for made photographs and outputs.

    Returns:
        photographs, compared (both ways), ours, theirs (images/s), ratio, target (None where there is none), and, in dB and where
        it applies, our_psnr, our_worst, their_psnr, their_worst.

    Raises:
        UserError: `photographs` has another layout.
    """
    files = sorted(layout.images_folder(photographs).iterdir())
    detailed = sorted(files, key=lambda file: file.stat().st_size)[-MADE:]
    lines: list[dict[str, Any]] = []
    with _pools() as pools:
        for name, shape, wanted, notebooks, floor in (
            ("photographs", None, 0, 7.0, None),
            ("1280x720", (1280, 720), 500_000, 3.6, 0.5),
            ("1920x1080", (1920, 1080), 500_000, 6.0, None),
            ("1920x1080", (1920, 1080), 1_000_000, 6.0, None),
        ):
            used = make_photographs(detailed, shape, wanted, work / f"{name}-{wanted}") if shape else files
            title = f"{name}, {sum(file.stat().st_size for file in used) / len(used) / 1000:.0f} KB"
            targets = {"notebooks": notebooks, "img2dataset": 1.3, "tf.data lanczos3": 1.3}
            lines += _on_both_cores(title, used, work, targets, pools)
            lines += _on_one_core(title, used, floor, pools)
    lines.append(_as_processes(photographs, files, work, 4.5))
    return pd.DataFrame(lines)
