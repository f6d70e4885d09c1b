"""Atomic writes: a file or folder is either whole or absent. And reads that name the file which can't be read."""

import glob
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.runtime.errors import UserError, short
from stages.common.runtime.tracked import refuse_edited

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a block that only writes; publish it by rename when the block succeeds.

    Raises:
        UserError: the system refused to write (disk full, no permission).
    """
    with writing(path), published_file(path) as temporary:
        yield temporary


@contextmanager
def published_file(path: Path) -> Iterator[Path]:
    """As `new_file`, for a block that does other work, too: its errors are not taken for those of writing."""
    temporary = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        yield temporary
        with writing(path):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` when the block can't write it.

    Raises:
        UserError: the system refused to write (disk full, no permission).
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 may notice a full disk when it closes the file: a RuntimeError
        raise write_error(path, error) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; publish it under `path` by rename when the block succeeds.

    Raises:
        UserError: the system refused to write (disk full, no permission).
    """
    temporary = _temporary(path)
    old = temporary.with_suffix(".old.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.mkdir()
        yield temporary
        # Renamed first: nobody should find the old folder while its files are being removed.
        with suppress(FileNotFoundError):
            path.replace(old)
        try:
            temporary.replace(path)
        except OSError:
            old.replace(path)
            raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    # With the host: two machines that share a folder may have processes of the same number.
    return path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files with which killed processes of this host tried to write `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*@{glob.escape(platform.node())}.*"):
        process = re.match(r"(\d+)@", leftover.name.removeprefix(f".{path.name}."))
        if process and (int(process[1]) == os.getpid() or not _alive(int(process[1]))):
            remove(leftover)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def destination(path: Path) -> Path:
    """Where what the user calls `path` is written: links are followed, and missing folders above it made.

    Raises:
        UserError: nothing can be written there.
    """
    place = Path(os.path.realpath(path))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise write_error(path, error) from error
    return place


def write_error(path: Path, error: Exception) -> UserError:
    """The error that says that the system refused to write `path`."""
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"could not write {path}: {reason}; free disk space or check permissions, then run again")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as indented JSON, atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write `table` as CSV without its index, atomically."""
    with new_file(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name `path`, which a stage writes, when the block can't read or parse it.

    Raises:
        UserError: the file was edited after its stage wrote it, or the block raised an OSError or a ValueError (JSON, CSV
            and UTF-8 errors are among these).
    """
    refuse_edited(path)
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or short(error)
        raise UserError(f"could not read {path}: {reason}; make it again with dvc repro") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that a stage writes.

    Raises:
        UserError: it can't be read.
    """
    with reading(path):
        return path.read_text(encoding="utf-8").split("\n")[:-1]


def read_json(path: Path) -> Any:
    """The content of a JSON file that a stage writes.

    Raises:
        UserError: it can't be read.
    """
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))
