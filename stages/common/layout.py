"""MPII's folder layout: images/ and the annotation file, directly in a folder or anywhere below it."""

import re
from collections.abc import Iterator
from os import walk
from pathlib import Path, PurePosixPath

from stages.common.problem import Problem

ANNOTATIONS = "mpii_human_pose_v1_u12_1.mat"
IMAGES = "images"


def annotation_file(data: Path) -> Path:
    """The annotation file of the data set in `data`.

    Raises:
        Problem: `data` is no folder, or holds no annotation file, or several.
    """
    return _only(data, ANNOTATIONS, (folder / ANNOTATIONS for folder, _, files in _walk(data) if ANNOTATIONS in files))


def images_folder(data: Path) -> Path:
    """The folder of the data set's images.

    Raises:
        Problem: `data` is no folder, or holds no folder `images`, or several.
    """
    return _only(data, f"{IMAGES}/", (folder / IMAGES for folder, folders, _ in _walk(data) if IMAGES in folders))


def inside(name: str) -> bool:
    """Whether an image's name, joined to the images' folder, stays in it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not unprintable(name)


def unprintable(text: str) -> bool:
    """Whether `text` holds control characters, or halves of characters, which no list of one name a line survives."""
    return bool(re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text))


def _walk(data: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, folders, files in walk(data):
        yield Path(folder), folders, files
        folders[:] = sorted(name for name in folders if name != IMAGES)


def _only(data: Path, name: str, found: Iterator[Path]) -> Path:
    if not data.is_dir():
        raise Problem(f"data is {str(data)!r}, which is no folder; expected one that holds {ANNOTATIONS} and {IMAGES}/")
    paths = list(found)
    if not paths:
        raise Problem(f"{data} holds no {name}; expected {ANNOTATIONS} and {IMAGES}/ directly in it or anywhere below")
    if len(paths) > 1:
        raise Problem(f"{data} holds {name} more than once: {paths[0]}, {paths[1]}; point data at the one you mean")
    return paths[0]
