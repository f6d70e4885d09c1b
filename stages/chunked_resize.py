"""The images in use -> data/resized: chunk files of 8-bit RGB squares.

A chunk is the unit of work: a worker decodes, resizes and writes its own chunks, and only names travel between
processes. Memory is one chunk a worker, whatever the number of images.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from stages.common import chunks, layout, parameters, problem
from stages.common.decoding import BadImage, decode
from stages.common.files import lock, new_folder, write_json
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.resuming import code, publish, resumable, state
from stages.common.workers import dead, prepare, starting

IMAGES = Path("data/images.txt")
OUT = Path("data/resized")
METRICS = Path("metrics/chunked-resize.json")


def resize_chunk(names: list[str], images: Path, size: int, out: Path) -> None:
    """Decode the images `names` of the folder `images` into the chunk file `out`: dataset pixels, (n, size, size, 3) uint8.

    Images that can't be decoded are left out. Their names, with the reason, are in a JSON file beside it.
    """
    pixels = np.empty((len(names), size, size, 3), np.uint8)
    good: list[str] = []
    bad: dict[str, str] = {}
    for name in names:
        try:
            pixels[len(good)] = decode(images / name, size)
            good.append(name)
        except BadImage as error:
            bad[name] = str(error)
    # First of the two: where the chunk is, nothing is missing.
    if bad:
        write_json(_bad_of(out), bad)
    chunks.write(out, good, {"pixels": pixels[: len(good)]})


def _bad_of(chunk: Path) -> Path:
    return chunk.with_suffix(".bad.json")


def resize(names: list[str], images: Path, size: int, chunk: int, folder: Path, workers: int) -> dict[str, str]:
    """Resize all images `names` into chunk files of `chunk` images in `folder`, in `workers` processes.

    Chunks that are there already are kept.

    Returns:
        The images that could not be decoded, with the reason, in the order of `names`.

    Raises:
        Problem: a worker was killed, or the system refused to write.
    """
    jobs = {folder / f"{start // chunk:05d}.h5": names[start : start + chunk] for start in range(0, len(names), chunk)}
    left = {out: part for out, part in jobs.items() if not out.exists()}
    if done := len(jobs) - len(left):
        print(f"chunked-resize: going on: {done} of {len(jobs)} chunks are there already")
    waiting = sum(len(part) for part in left.values())
    with (
        progress(len(names), "chunked-resize", "image", initial=len(names) - waiting) as bar,
        dead("a worker was killed, probably for lack of memory; lower resize.chunk, or run again to go on"),
        ProcessPoolExecutor(max(1, min(workers, len(left))), initializer=prepare) as pool,
    ):
        try:
            with starting():
                futures = {pool.submit(resize_chunk, part, images, size, out): len(part) for out, part in left.items()}
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    bad = [json.loads(_bad_of(out).read_text(encoding="utf-8")) for out in jobs if _bad_of(out).exists()]
    return {name: reason for part in bad for name, reason in part.items()}


@lock("chunked-resize")
def main() -> None:
    values = parameters.load()
    names = IMAGES.read_text(encoding="utf-8").split("\n")[:-1]
    images = layout.images_folder(Path(values.data))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size, chunk = values.resize.size, values.resize.chunk
    with resumable(OUT, code(), size, chunk, state(images / name for name in names)) as done:
        bad = resize(names, images, size, chunk, done, workers)
        if len(bad) == len(names) or len(bad) > values.resize.max_bad * len(names):
            raise Problem(
                f"{len(bad)} of {len(names)} images can't be decoded ({'; '.join(_named(bad))}); expected at most the "
                f"fraction resize.max_bad = {values.resize.max_bad}: mend or remove them, or raise it"
            )
        with new_folder(OUT) as folder:
            publish(done.glob("*.h5"), folder)
        write_json(METRICS, {"images": len(names) - len(bad), "bad": len(bad), "bad_images": bad})
    print(f"chunked-resize: {len(names) - len(bad)} images of {size}x{size} in {OUT}")
    for line in _named(bad):
        print(f"chunked-resize: warning: left out {line}")


def _named(bad: dict[str, str], most: int = 10) -> Iterator[str]:
    yield from (f"{name}: {reason}" for name, reason in list(bad.items())[:most])
    if len(bad) > most:
        yield f"and {len(bad) - most} more"


if __name__ == "__main__":
    problem.run(main)
