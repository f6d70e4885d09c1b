"""Files and folders that are either whole or absent."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.problem import Problem

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; publish it under `path` by rename when the block succeeds.

    Raises:
        Problem: the system refused to write (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 may notice a full disk when it closes the file: a RuntimeError
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; publish it under `path` by rename when the block succeeds.

    Raises:
        Problem: the system refused to write (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refused(path: Path, error: Exception) -> Problem:
    reason = getattr(error, "strerror", None) or str(error)
    return Problem(f"could not write {path}: {reason}; free some space or check the permissions, then run again")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as indented JSON, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write `table` as CSV without its index, whole or not at all."""
    with new_file(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
