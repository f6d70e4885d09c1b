"""The stage chunked-resize beside the notebooks' way, img2dataset, tf.data and libjpeg-turbo: speed, and closeness to the whole."""

import importlib
import io
import os
import shutil
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from stages import chunked_resize
from stages.common import decoding, layout
from stages.common.decoding import decode

ROOT = Path(__file__).resolve().parent.parent
SIZE = 224
CHUNK = 64
CORES = 2
REPEATS = 5
LEAST = 1000  # images a repetition of what has both cores: some seconds
SAMPLE = 250  # images a repetition on one core
MADE = 64  # photographs that the sets of one size are made of
LANCZOS = Image.Resampling.LANCZOS

Result = TypeVar("Result")

NOTES = f"""\
Both sides of a row ran in the same minutes, in turn, {REPEATS} times after a first time that is not counted; images a second are
medians, and `ratio` is ours / theirs. PSNR (dB; median and worst image) is to the whole photograph decoded by Pillow and resized
by Lanczos; the worst of ours is expected at 44 or more. All results are {SIZE} x {SIZE} but img2dataset's.

- **photographs** are as they are; **1280x720** and **1920x1080** are made of the {MADE} largest files, by Lanczos, as 4:2:0 JPEGs
  whose quality, one of two neighbours, is chosen for a mean of 500 KB, which is MPII's, and again of 1 MB (100, where even that
  makes less: the set's name has the mean).
- **stage**: `chunked_resize.resize` on {CORES} processes, chunk files written and synced. The others write nothing.
- **notebooks**: Pillow, decoded whole, Lanczos, one process. In the row of **processes** both start as a Python of their own.
- **img2dataset** (`pip install --no-deps img2dataset==1.47.0 && pip install "albumentations<2" "opencv-python-headless<5" fire
  webdataset exifread-nocycle dataclasses wandb`, Python 3.12 or older): its `Resizer` on {CORES} processes. It can't make a
  square of the whole photograph: `keep_ratio_largest` is its fastest way (fewer pixels than ours), `area` its only filter that
  does not alias. It can't leave out the JPEG that it makes of the result: here it is left out, for speed and PSNR. Its PSNR is to
  Pillow's {SIZE}-pixel image of the same shape.
- **tf.data**: `map` with AUTOTUNE on {CORES} cores; `decode_jpeg` with our choice of `ratio`, and `dct_method` INTEGER_ACCURATE
  (INTEGER_FAST is no faster and up to 6 dB worse); `lanczos3` is its only filter of equal PSNR, `area` its fastest.
- **decode** and what is beside it: one process. The **floor** is libjpeg-turbo at scale 1/8, which is little more than reading
  the Huffman codes. The rows below it are what would be faster, or was: `decode` with that constant, and Pillow's filters on what
  libjpeg-turbo has reduced as much as for `decode`.
"""


class Speed(NamedTuple):
    """Images a second, and the PSNR in dB of each image."""

    rate: float
    psnr: list[float]


def _whole(path: Path, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(shape, LANCZOS))


def psnr(path: Path, pixels: np.ndarray) -> float:
    """PSNR in dB of `pixels`, (height, width, 3) uint8, to the whole image of that file resized by Lanczos; at most 78."""
    expected = _whole(path, (pixels.shape[1], pixels.shape[0]))
    error = np.mean((pixels.astype(float) - expected) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def _result(executor: Executor, work: Callable[..., Result], *arguments: Any) -> Result:
    return executor.submit(work, *arguments).result()


def rates(ways: dict[str, Callable[[], int]], out: Path | None = None) -> dict[str, float]:
    """Images a second of each way: medians of several runs of all of them in turn.

    A way returns how many images it did. What it leaves in the folder `out` is removed when its time has been taken.
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


def _line(photographs: str, ways: str, ours: Speed, theirs: Speed, target: float | None = None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "photographs": photographs,
        "compared": ways,
        "ours": ours.rate,
        "theirs": theirs.rate,
        "ratio": ours.rate / theirs.rate,
        "target": target,
    }
    for side, values in (("our", ours.psnr), ("their", theirs.psnr)):
        line |= {f"{side}_psnr": median(values), f"{side}_worst": min(values)} if values else {}
    return line


def made(photographs: list[Path], shape: tuple[int, int], wanted: int, folder: Path) -> list[Path]:
    """Make JPEGs of `shape` (width, height) of the photographs, of `wanted` bytes on average, or of quality 100 if that is less."""

    def encoded(image: Image.Image, quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        return buffer.getvalue()

    def resized(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB").resize(shape, LANCZOS)

    some = [resized(path) for path in photographs[::4]]
    qualities = range(2, 100)
    quality = 2 + bisect_left(
        qualities, wanted, key=lambda quality: sum(len(encoded(image, quality)) for image in some) // len(some)
    )
    folder.mkdir()
    total = 0
    for number, path in enumerate(photographs, start=1):
        image = resized(path)
        content = encoded(image, quality)
        if total + len(content) > wanted * number:
            content = encoded(image, quality - 1)
        total += len(content)
        (folder / path.name).write_bytes(content)
    return [folder / path.name for path in photographs]


def _silent() -> None:
    """Show no progress bars, and nothing of what TensorFlow says at its import, below Python."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _by_stage(paths: list[Path], out: Path) -> int:
    out.mkdir()
    chunked_resize.resize([path.name for path in paths], paths[0].parent, SIZE, CHUNK, out, CORES)
    return len(paths)


def _one_by_one(way: Callable[[Path], object], paths: list[Path]) -> int:
    for path in paths:
        way(path)
    return len(paths)


@lru_cache
def _resizer() -> Any:
    # Asks the network for a newer version at its import otherwise.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    cv2: Any = importlib.import_module("cv2")
    cv2.imencode = lambda kind, image, params: (True, image)  # of this process only
    return importlib.import_module("img2dataset.resizer").Resizer(SIZE, "keep_ratio_largest", False)


def _by_img2dataset(path: Path) -> np.ndarray:
    content, width, height, _, _, error = _resizer()(io.BytesIO(path.read_bytes()))
    if error:
        raise RuntimeError(error)
    return np.frombuffer(content, np.uint8).reshape(height, width, 3)[..., ::-1]


@lru_cache
def _dataset(paths: tuple[Path, ...], method: str) -> Any:
    tf: Any = importlib.import_module("tensorflow")

    def decoded(content: Any) -> Any:
        scale = tf.reduce_min(tf.io.extract_jpeg_shape(content)[:2]) // round(SIZE * decoding.LEAST_REDUCED)
        return tf.switch_case(
            tf.searchsorted([2, 4, 8], [scale], side="right")[0],
            [
                partial(tf.io.decode_jpeg, content, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")
                for ratio in (1, 2, 4, 8)
            ],
        )

    def resized(path: Any) -> Any:
        image = tf.image.resize(decoded(tf.io.read_file(path)), (SIZE, SIZE), method, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    return files.map(resized, num_parallel_calls=tf.data.AUTOTUNE).batch(CHUNK).prefetch(tf.data.AUTOTUNE)


def _by_tf_data(paths: tuple[Path, ...], method: str) -> int:
    return sum(len(batch) for batch in _dataset(paths, method))


def _tf_data_pixels(paths: tuple[Path, ...], method: str) -> np.ndarray:
    return np.concatenate(list(_dataset(paths, method).as_numpy_iterator()))


def _on_both_cores(
    title: str,
    paths: list[Path],
    work: Path,
    targets: dict[str, float],
    alone: Executor,
    tf: Executor,
    both: Executor,
    judges: Executor,
) -> list[dict[str, Any]]:
    """The stage against what else makes squares of photographs.

    `alone` and `tf` have one process each, as a process that holds TensorFlow should not start others by fork. Nothing but
    img2dataset runs in `both`: after work with large arrays, such as PSNR's, it is up to a fifth faster there than where it
    starts, as malloc then keeps large blocks.
    """
    many = paths * -(-LEAST // len(paths))
    parts = [many[start : start + CHUNK] for start in range(0, len(many), CHUNK)]
    ways: dict[str, Callable[[], int]] = {
        "stage": partial(_result, alone, _by_stage, many, work / "out"),
        "notebooks": partial(_result, alone, _one_by_one, _whole, paths),
    }
    pixels: dict[str, Iterable[np.ndarray]] = {"stage": judges.map(decode, paths, repeat(SIZE), chunksize=CORES)}
    if find_spec("img2dataset"):
        ways["img2dataset"] = lambda: sum(both.map(_one_by_one, repeat(_by_img2dataset), parts))
        pixels["img2dataset"] = judges.map(_by_img2dataset, paths, chunksize=CORES)
    for method in ("lanczos3", "area"):
        ways[f"tf.data {method}"] = partial(_result, tf, _by_tf_data, tuple(many), method)
        pixels[f"tf.data {method}"] = _result(tf, _tf_data_pixels, tuple(paths), method)
    close = {way: list(judges.map(psnr, paths, results, chunksize=CORES)) for way, results in pixels.items()}
    speeds = {way: Speed(rate, close.get(way, [])) for way, rate in rates(ways, work / "out").items()}
    ours = speeds.pop("stage")
    lines = [_line(title, f"stage / {way}", ours, theirs, targets.get(way)) for way, theirs in speeds.items()]
    if "img2dataset" not in speeds:
        lines.append({"photographs": title, "compared": "stage / img2dataset: not installed"})
    return lines


_NOTEBOOK = f"""
import sys
from pathlib import Path
import numpy as np
from PIL import Image
paths = sorted(Path(sys.argv[1]).iterdir())
np.stack([np.asarray(Image.open(p).convert("RGB").resize(({SIZE}, {SIZE}), Image.Resampling.LANCZOS)) for p in paths])
"""


def _as_processes(photographs: Path, paths: list[Path], work: Path, target: float) -> dict[str, Any]:
    """The whole stage, its start included, against the notebooks' way."""
    folder = work / "stage"
    (folder / "data").mkdir(parents=True)
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values |= {"data": str(photographs.resolve()), "resize": {"size": SIZE, "chunk": CHUNK, "max_bad": 0.0}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / "data/images.txt").write_text("".join(f"{path.name}\n" for path in paths), encoding="utf-8")

    def run(*arguments: str) -> int:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return len(paths)

    speeds = rates(
        {
            "stage": lambda: run("-m", "stages.chunked_resize"),
            "notebooks": lambda: run("-c", _NOTEBOOK, str(paths[0].parent.resolve())),
        },
        folder / "data/resized",
    )
    ours, theirs = (Speed(rate, []) for rate in speeds.values())
    return _line("photographs", "stage / notebooks, as processes", ours, theirs, target)


def _floor(path: Path) -> None:
    with Image.open(path) as image:
        image.draft(None, (image.width // 8, image.height // 8))
        image.load()


def _less_reduced(path: Path) -> np.ndarray:
    with patch.object(decoding, "LEAST_REDUCED", 1.0):
        return decode(path, SIZE)


def _pillow(resample: Image.Resampling, gap: float | None, path: Path) -> np.ndarray:
    with Image.open(path) as image:
        least = round(SIZE * decoding.LEAST_REDUCED)
        drafted = image.draft("RGB", (least, least))
        box = drafted[1] if drafted else None
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), resample, box, gap))


SETTINGS: dict[str, Callable[[Path], np.ndarray]] = {
    "decode": partial(decode, size=SIZE),
    "LEAST_REDUCED 1.0": _less_reduced,
    "Pillow's Lanczos": partial(_pillow, LANCZOS, None),
    "Pillow's Lanczos, first reduced by whole numbers": partial(_pillow, LANCZOS, 1.0),
    "Pillow's bilinear": partial(_pillow, Image.Resampling.BILINEAR, None),
    "Pillow's box": partial(_pillow, Image.Resampling.BOX, None),
}


def _on_one_core(
    title: str, paths: list[Path], target: float | None, alone: Executor, judges: Executor
) -> list[dict[str, Any]]:
    """`decode` against the floor, and against what would be faster."""
    paths = paths[:: -(-len(paths) // SAMPLE)]
    many = paths * -(-SAMPLE // len(paths))
    ways: dict[str, Callable[[], int]] = {
        name: partial(_result, alone, _one_by_one, way, many) for name, way in {"floor": _floor, **SETTINGS}.items()
    }
    close = {name: list(judges.map(psnr, paths, judges.map(way, paths))) for name, way in SETTINGS.items()}
    speeds = {way: Speed(rate, close.get(way, [])) for way, rate in rates(ways).items()}
    ours = speeds.pop("decode")
    return [
        _line(title, f"decode / {way}", ours, theirs, target if way == "floor" else None)
        for way, theirs in speeds.items()
    ]


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """All comparisons, one row each; takes about twenty minutes on two cores with a thousand photographs.

    Args:
        photographs: a folder in MPII's layout.
        work: an empty folder for made photographs and outputs.

    Returns:
        photographs, compared (both ways), ours, theirs (images/s), ratio, target (None where there is none), and, in dB and where
        it applies, our_psnr, our_worst, their_psnr, their_worst.

    Raises:
        Problem: `photographs` has another layout.
    """
    paths = sorted(layout.images_folder(photographs).iterdir())
    detailed = sorted(paths, key=lambda path: path.stat().st_size)[-MADE:]
    lines: list[dict[str, Any]] = []
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, _silent) as alone,
        ProcessPoolExecutor(1, spawn, _silent) as tf,
        ProcessPoolExecutor(CORES, spawn, _silent) as both,
        ProcessPoolExecutor(CORES, spawn, _silent) as judges,
    ):
        for name, shape, wanted, notebooks, floor in (
            ("photographs", None, 0, 7.0, None),
            ("1280x720", (1280, 720), 500_000, 3.6, 0.5),
            ("1920x1080", (1920, 1080), 500_000, 6.0, None),
            ("1920x1080", (1920, 1080), 1_000_000, 6.0, None),
        ):
            used = made(detailed, shape, wanted, work / f"{name}-{wanted}") if shape else paths
            title = f"{name}, {sum(path.stat().st_size for path in used) / len(used) / 1000:.0f} KB"
            targets = {"notebooks": notebooks, "img2dataset": 1.3, "tf.data lanczos3": 1.3}
            lines += _on_both_cores(title, used, work, targets, alone, tf, both, judges)
            lines += _on_one_core(title, used, floor, alone, judges)
    lines.append(_as_processes(photographs, paths, work, 4.5))
    return pd.DataFrame(lines)
