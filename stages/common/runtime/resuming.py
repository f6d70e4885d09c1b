"""Finished pieces of a stage's work, kept beside its output until the output is whole.

dvc deletes a stage's outputs before it runs the stage, so a half-finished output can't be continued.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from stages.common.runtime.errors import is_system_fault, short
from stages.common.runtime.files import new_file, remove, write_error

# Libraries whose version may change a result.
LIBRARIES = ("PIL", "cykooz_resizer", "h5py", "jax", "keras", "numpy", "pandas", "sklearn", "tensorflow")


@contextmanager
def resumable(out: Path, *depends: Any) -> Iterator[Path]:
    """Yield a folder for finished pieces, as the last run with the same `depends` left it.

    It lies beside `out` and is removed when the block succeeds. Pieces of a run with other `depends` are removed at once.

    Args:
        out: what the pieces are for.
        depends: everything that the pieces depend on, as JSON values.

    Raises:
        UserError: the folder can't be made.
    """
    folder = folder_of(out, *depends)
    store = folder.parent
    try:
        if store.is_dir():
            for other in store.iterdir():
                if other != folder:
                    remove(other)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    yield folder
    if not _orphaned():
        remove(store)


def folder_of(out: Path, *depends: Any) -> Path:
    """The folder that `resumable` yields, which may be absent."""
    text = json.dumps(depends, sort_keys=True)
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return out.with_name(f".{out.name}.resume") / name


def _orphaned() -> bool:
    """Whether dvc started this stage and has died: the next dvc deletes the output and needs the pieces."""
    if "DVC_STAGE" not in os.environ:
        return False
    return not any(_is_dvc(process) for process in psutil.Process().parents())


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline())
    except psutil.Error:  # it ends just now, or belongs to another user
        return False


def unfinished(pieces: Iterable[Path], stage: str, unit: str, check: Callable[[Path], object]) -> list[Path]:
    """The pieces that no earlier run has finished. Prints how many are finished, if any.

    Args:
        pieces: all of them.
        stage: for messages.
        unit: what a piece is, in the plural.
        check: reads a piece, and raises an exception if it is damaged; such a piece is removed.
    """
    pieces = list(pieces)
    for piece in pieces:
        if piece.exists():
            try:
                check(piece)
            except Exception as error:  # each format has its own types for a damaged file
                if is_system_fault(error):
                    raise
                remove(piece)
                print(f"{stage}: discarded the damaged {piece.name} ({short(error)})")
    left = [piece for piece in pieces if not piece.exists()]
    if len(left) < len(pieces):
        print(f"{stage}: resuming: {len(pieces) - len(left)}/{len(pieces)} {unit} done")
    return left


def code() -> list[Any]:
    """The source of the project's loaded modules, and the versions of the libraries and of Python."""
    return [sorted(set(sources().values())), versions(), platform.python_version()]


def sources() -> dict[str, str]:
    """A digest of the source of each loaded module of the project, by the module's name."""
    found = ((_own_name(name, module), getattr(module, "__file__", None)) for name, module in list(sys.modules.items()))
    return {name: _digest(name, file) for name, file in found if name.split(".")[0] == "stages" and file}


# Kept: a worker of a cluster lives long, and runs what it has loaded, whatever the file has become since.
@cache
def _digest(name: str, file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """The versions of the loaded libraries, those whose version may change a result."""
    loaded = [name for name in LIBRARIES if name in sys.modules]
    return {name: str(getattr(sys.modules[name], "__version__", None) or version(name)) for name in loaded}


def _own_name(name: str, module: Any) -> str:
    specification = getattr(module, "__spec__", None)
    return specification.name if specification else name


def fingerprint(paths: Iterable[Path]) -> str:
    """A digest of path, inode, size, time of change and permissions of each file: dvc notices changes by the first four."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(repr((str(path), *_status(path))).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _status(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def publish(pieces: Iterable[Path], folder: Path) -> None:
    """Put files into `folder` under their own names, as hard links where the file system allows it."""
    for piece in pieces:
        try:
            os.link(piece, folder / piece.name)
        except OSError:
            shutil.copyfile(piece, folder / piece.name)


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an array as a piece, atomically."""
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, values)  # not np.save: it does not notice a full disk


def load_array(path: Path) -> np.ndarray:
    """The array that `save_array` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        values: np.ndarray = stored["arr_0"]
        return values


def check_array(path: Path, shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless the array in `path` has this shape."""
    if (found := load_array(path).shape) != shape:
        raise ValueError(f"an array of {found}")
