"""Where a data set's images are, and what their names may be.

MPII's layout is images/ and the annotation file, directly in a folder or anywhere below it. In the other layouts names are
paths below the data set's folder.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from os import walk
from pathlib import Path, PurePosixPath

from stages.common.runtime.errors import UserError
from stages.common.runtime.paths import MPII_ANNOTATIONS, MPII_IMAGES

SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

# Of the table of annotations.
COLUMNS = ("image", "category", "activity", "video", "people", "labelled", "part")

EXPECTED = (
    f"expected a folder of photographs for each label, or labels.csv, or MPII's {MPII_IMAGES}/ and {MPII_ANNOTATIONS}: see "
    "docs/data.md"
)


def has_annotation_file(data: Path) -> bool:
    """Whether the data set in `data` is in MPII's layout.

    Raises:
        UserError: `data` is not a folder.
    """
    if not data.is_dir():
        raise UserError(f"data is {str(data)!r}, which is not a folder; {EXPECTED}")
    return any(MPII_ANNOTATIONS in files for _, _, files in _walk(data))


def annotation_file(data: Path) -> Path:
    """The annotation file of the data set in `data`.

    Raises:
        UserError: `data` is not a folder, or contains no annotation file, or several.
    """
    found = (folder / MPII_ANNOTATIONS for folder, _, files in _walk(data) if MPII_ANNOTATIONS in files)
    return _only(data, MPII_ANNOTATIONS, found)


def images_folder(data: Path) -> Path:
    """The folder to which the names of the data set's images are relative.

    Raises:
        UserError: `data` is not a folder, or is in MPII's layout without a folder `images`, or with several.
    """
    if not has_annotation_file(data):
        return data
    return _only(
        data, f"{MPII_IMAGES}/", (folder / MPII_IMAGES for folder, names, _ in _walk(data) if MPII_IMAGES in names)
    )


def image_files(data: Path) -> Iterator[PurePosixPath]:
    """The paths below `data` that have the suffix of an image, those in hidden folders apart."""
    for below, _, files in _visible(data):
        yield from (below / name for name in files if _is_image(name))


def scan(folder: Path, apart: str = "") -> tuple[list[PurePosixPath], Counter[str]]:
    """The images below `folder`, sorted, and how many other files are there, by suffix; `apart` is not counted.

    Raises:
        UserError: a folder that can't be read, a link to a folder, or a name that a text file can't hold.
    """
    images: list[PurePosixPath] = []
    skipped: Counter[str] = Counter()

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; expected a folder that can be read") from error

    refuse_linked_folder(folder)
    for below, folders, files in _visible(folder, fail):
        for name in folders:
            refuse_linked_folder(folder / below / name)
        for path in (below / name for name in files):
            if str(path) == apart:
                continue
            if not _is_image(path.name):
                skipped["hidden" if is_hidden(path.name) else path.suffix.lower() or "without suffix"] += 1
            elif has_control_characters(str(path)):
                raise UserError(f"{folder}: the name {str(path)!r} has control characters or is not UTF-8: rename it")
            else:
                images.append(path)
    return images, skipped


def image_folders(data: Path) -> list[str]:
    """The first folders below `data` with images in them, sorted."""
    return sorted({path.parts[0] for path in image_files(data) if len(path.parts) > 1})


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one of thumbnails that systems make: macOS's and Synology's."""
    return name.startswith((".", "__MACOSX", "@eaDir"))


def refuse_linked_folder(path: Path) -> None:
    """Raise a `UserError` if `path` is a link to a folder: DVC does not notice changes of files behind it."""
    if path.is_symlink() and path.is_dir():
        raise UserError(
            f"{path} is a link to a folder, behind which DVC notices no changes; expected a real folder: copy it, or "
            "choose a folder that contains no such link"
        )


def is_inside(name: str) -> bool:
    """Whether an image's name, joined to the images' folder, stays in it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not has_control_characters(name)


def has_control_characters(text: str) -> bool:
    """Whether `text` has control characters or lone surrogates, which no text file with one name per line can hold."""
    return bool(re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text))


def _is_image(name: str) -> bool:
    return not is_hidden(name) and PurePosixPath(name).suffix.lower() in SUFFIXES


def _visible(
    data: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[PurePosixPath, list[str], list[str]]]:
    """`os.walk` by paths below `data`, sorted. Hidden folders are named, but not entered."""
    for folder, folders, files in walk(data, onerror=onerror):
        yield PurePosixPath(Path(folder).relative_to(data)), folders, sorted(files)
        folders[:] = sorted(name for name in folders if not is_hidden(name))


def _walk(data: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, folders, files in walk(data):
        yield Path(folder), folders, files
        folders[:] = sorted(name for name in folders if name != MPII_IMAGES)


def _only(data: Path, name: str, found: Iterator[Path]) -> Path:
    paths = list(found)
    for path in paths:
        refuse_linked_folder(path)
    if not paths:
        raise UserError(
            f"{data} contains no {name}; expected {MPII_ANNOTATIONS} and {MPII_IMAGES}/ directly in it or anywhere below"
        )
    if len(paths) > 1:
        raise UserError(f"{data} contains {name} more than once: {paths[0]}, {paths[1]}; set data to one of them")
    return paths[0]
