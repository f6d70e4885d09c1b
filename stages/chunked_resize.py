"""The images in use to data/resized: chunk files of 8-bit RGB squares.

A chunk is the unit of work: a worker decodes, resizes and writes whole chunks, and only names travel between
processes. Memory is one chunk per worker, whatever the number of images.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from stages.common.dataset import chunks
from stages.common.images import layout
from stages.common.images.decoding import DecodeError, decode
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import new_folder, reading, remove, write_json
from stages.common.runtime.lock import lock
from stages.common.runtime.progress import progress
from stages.common.runtime.resuming import code, fingerprint, publish, resumable, unfinished
from stages.common.runtime.workers import available_cores, dead_worker, prepare, starting

STAGE = "chunked-resize"


def resize_chunk(names: list[str], images: Path, size: int, out: Path) -> None:
    """Decode the images `names` of the folder `images` into the chunk file `out`: dataset pixels, (n, size, size, 3) uint8.

    Images that can't be decoded are skipped. A JSON file beside the chunk has their names and the reasons.
    """
    pixels = np.empty((len(names), size, size, 3), np.uint8)
    good: list[str] = []
    bad: dict[str, str] = {}
    for name in names:
        try:
            pixels[len(good)] = decode(images / name, size)
            good.append(name)
        except DecodeError as error:
            bad[name] = str(error)
    # The chunk is written last: where it exists, nothing is missing.
    if bad:
        write_json(_bad_of(out), bad)
    chunks.write(out, good, {"pixels": pixels[: len(good)]})


def _check_piece(chunk: Path) -> None:
    """Raise an exception if a finished chunk is damaged, or the list of its bad images, which is then removed."""
    chunks.check(chunk, "pixels")
    if _bad_of(chunk).exists():
        try:
            dict(json.loads(_bad_of(chunk).read_text(encoding="utf-8")).items())
        except Exception:
            remove(_bad_of(chunk))
            raise


def _bad_of(chunk: Path) -> Path:
    return chunk.with_suffix(".bad.json")


def resize(names: list[str], images: Path, size: int, chunk: int, folder: Path, workers: int) -> dict[str, str]:
    """Resize all images `names` into chunk files of `chunk` images in `folder`, in `workers` processes.

    Existing chunks are kept.

    Returns:
        The images that could not be decoded, with the reason, in the order of `names`.

    Raises:
        UserError: a worker was killed, or the system refused to write.
    """
    jobs = {folder / f"{start // chunk:05d}.h5": names[start : start + chunk] for start in range(0, len(names), chunk)}
    left = unfinished(jobs, STAGE, "chunks", _check_piece)
    done = len(names) - sum(len(jobs[out]) for out in left)
    with (
        progress(len(names), STAGE, "image", initial=done) as bar,
        dead_worker("a worker was killed, probably for lack of memory; lower resize.chunk, or run again to resume"),
        ProcessPoolExecutor(max(1, min(workers, len(left))), initializer=prepare) as pool,
    ):
        try:
            with starting():
                futures = {pool.submit(resize_chunk, jobs[out], images, size, out): len(jobs[out]) for out in left}
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    bad = [json.loads(_bad_of(out).read_text(encoding="utf-8")) for out in jobs if _bad_of(out).exists()]
    return {name: reason for part in bad for name, reason in part.items()}


@lock(STAGE)
def main() -> None:
    values = parameters.load()
    with reading(paths.IMAGE_LIST):
        names = paths.IMAGE_LIST.read_text(encoding="utf-8").split("\n")[:-1]
    if not names:
        raise UserError(f"{paths.IMAGE_LIST} lists no image; make it again with dvc repro")
    images = layout.images_folder(Path(values.data))
    size, chunk, max_bad = values.resize.size, values.resize.chunk, values.resize.max_bad
    inputs = fingerprint(images / name for name in names)
    with resumable(paths.RESIZED, code(), size, chunk, inputs) as folder:
        bad = resize(names, images, size, chunk, folder, available_cores())
        if len(bad) == len(names) or len(bad) > max_bad * len(names):
            raise UserError(
                f"{len(bad)} of {len(names)} images can't be decoded ({'; '.join(_listed(bad))}); expected at most the "
                f"fraction resize.max_bad = {max_bad}: repair or remove them, or raise it"
            )
        with new_folder(paths.RESIZED) as out:
            publish(folder.glob("*.h5"), out)
        write_json(paths.RESIZE_METRICS, {"images": len(names) - len(bad), "bad": len(bad), "bad_images": bad})
    print(f"{STAGE}: {len(names) - len(bad)} images of {size}x{size} in {paths.RESIZED}")
    for line in _listed(bad):
        print(f"{STAGE}: warning: skipped {line}")


def _listed(bad: dict[str, str], limit: int = 10) -> Iterator[str]:
    yield from (f"{name}: {reason}" for name, reason in list(bad.items())[:limit])
    if len(bad) > limit:
        yield f"and {len(bad) - limit} more"


if __name__ == "__main__":
    errors.run(main)
