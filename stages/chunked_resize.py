"""The labelled images to data/resized, or those without labels to data/unlabelled: chunk files of 8-bit RGB squares.

A chunk is the unit of work: a worker decodes, resizes and writes whole chunks, and only names travel between
processes, or machines. Memory is one chunk per worker, whatever the number of images.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.common.dataset import chunks
from stages.common.images import layout
from stages.common.images.decoding import DecodeError, decode
from stages.common.runtime import errors, jobs, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import new_folder, read_lines, remove, write_json
from stages.common.runtime.lock import lock
from stages.common.runtime.progress import progress
from stages.common.runtime.resuming import code, fingerprint, publish, resumable, unfinished
from stages.common.runtime.workers import available_cores


class Job(NamedTuple):
    """Which images a stage resizes, and where the results are: `listed` ones of `data`, and perhaps all of a further folder."""

    stage: str
    listed: Path
    out: Path
    metrics: Path


LABELLED = Job("chunked-resize", paths.IMAGE_LIST, paths.RESIZED, paths.RESIZE_METRICS)
UNLABELLED = Job("chunked-resize-unlabelled", paths.UNLABELLED_LIST, paths.UNLABELLED, paths.UNLABELLED_METRICS)


def resize_chunk(files: dict[str, Path], size: int, out: Path) -> None:
    """Decode image files by name into the chunk file `out`: dataset pixels, (n, size, size, 3) uint8.

    Images that can't be decoded are skipped. A JSON file beside the chunk has their names and the reasons.
    """
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    good: list[str] = []
    bad: dict[str, str] = {}
    for name, file in files.items():
        try:
            pixels[len(good)] = decode(file, size)
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


def resize(
    files: dict[str, Path], size: int, chunk: int, folder: Path, workers: int, stage: str = LABELLED.stage
) -> dict[str, str]:
    """Resize all image files, by name, into chunk files of `chunk` images in `folder`, in `workers` processes or on a cluster.

    Existing chunks are kept. Without files there is one chunk, of no image.

    Returns:
        The images that could not be decoded, with the reason, in the order of `files`.

    Raises:
        UserError: a worker was killed, or the system refused to write.
    """
    names = list(files)
    pieces = {
        folder / f"{start // chunk:05d}.h5": {name: files[name] for name in names[start : start + chunk]}
        for start in range(0, max(1, len(names)), chunk)
    }
    left = unfinished(pieces, stage, "chunks", _check_piece)
    done = len(names) - sum(len(pieces[out]) for out in left)
    with progress(len(names), stage, "image", initial=done) as bar:
        jobs.run(
            stage,
            resize_chunk,
            {out: (pieces[out], size, out) for out in left},
            lambda out: bar.update(len(pieces[out])),
            processes=workers,
            needs=[folder, *(files[name] for name in {*names[:1], *names[-1:]})],  # further images come last
            dead="a worker was killed, probably for lack of memory; lower resize.chunk, or run again to resume",
        )
    bad = [json.loads(_bad_of(out).read_text(encoding="utf-8")) for out in pieces if _bad_of(out).exists()]
    return {name: reason for part in bad for name, reason in part.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.chunked_resize")
    parser.add_argument("images", nargs="?", choices=["unlabelled"], help="without it: the labelled images")
    job = UNLABELLED if parser.parse_args().images else LABELLED
    with lock(job.stage):
        values = parameters.load()
        names = read_lines(job.listed)
        if not names and job is LABELLED:
            raise UserError(f"{job.listed} lists no image; make it again with dvc repro")
        images = layout.images_folder(Path(values.data))
        files = {name: images / name for name in names}
        if job is UNLABELLED:
            files |= _further(Path(values.pretrain.extra))
        _run(job, files, values.resize)


def _further(folder: Path) -> dict[str, Path]:
    """The image files of `pretrain.extra` by name.

    Raises:
        UserError: no image in a folder of the user, or one that can't be read, or what `layout.scan` refuses.
    """
    key = f"pretrain.extra is {str(folder)!r}"
    try:
        found, skipped = layout.scan(folder)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    others = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common() if kind != "hidden")
    if not found and folder.resolve() != paths.EXTRA.resolve():
        raise UserError(
            f"{key}, which has no image ({others or 'no file'}); expected {', '.join(sorted(layout.SUFFIXES))}"
        )
    print(f"{UNLABELLED.stage}: {len(found)} further images in {folder}" + (f"; skipped {others}" if others else ""))
    return {f"{chunks.EXTRA}{path}": folder / path for path in found}


def _run(job: Job, files: dict[str, Path], how: parameters.Resize) -> None:
    with resumable(job.out, code(), how.size, how.chunk, list(files), fingerprint(files.values())) as folder:
        bad = resize(files, how.size, how.chunk, folder, available_cores(), job.stage)
        # A folder of any photographs may have any number of bad ones.
        own, bad_own = ({name for name in names if not name.startswith(chunks.EXTRA)} for names in (files, bad))
        if bad_own and (len(bad_own) == len(own) or len(bad_own) > how.max_bad * len(own)):
            raise UserError(
                f"{len(bad_own)} of {len(own)} images can't be decoded ({'; '.join(_listed(bad, files))}); expected at most "
                f"the fraction resize.max_bad = {how.max_bad}: repair or remove them, or raise it"
            )
        with new_folder(job.out) as out:
            publish(folder.glob("*.h5"), out)
        write_json(job.metrics, {"images": len(files) - len(bad), "bad": len(bad), "bad_images": bad})
    print(f"{job.stage}: {len(files) - len(bad)} images of {how.size}x{how.size} in {job.out}")
    for line in _listed(bad, files):
        print(f"{job.stage}: warning: skipped {line}")


def _listed(bad: dict[str, str], files: dict[str, Path], limit: int = 10) -> Iterator[str]:
    for name, reason in list(bad.items())[:limit]:
        yield f"{files[name] if name.startswith(chunks.EXTRA) else name}: {reason}"
    if len(bad) > limit:
        yield f"and {len(bad) - limit} more"


if __name__ == "__main__":
    errors.run(main)
