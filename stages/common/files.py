"""Files and folders that are either whole or absent, and the lock that lets one process at a time make them."""

import fcntl
import glob
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.problem import Problem

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def lock(stage: str) -> Iterator[None]:
    """Hold `stage` in this working tree while the block runs. As a decorator: while the function runs.

    A stage that dvc started goes on when dvc is killed, and the next dvc would start it once more on the same outputs.

    Raises:
        Problem: another process holds it.
    """
    path = Path(f"data/.{stage}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A POSIX lock: the system releases it when the process dies, however it dies, and workers do not inherit it.
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise Problem(
                f"{stage} is being run by {holder}, which holds {path}; wait until it has ended or end it, then run again: "
                "what it has done is kept"
            ) from error
        with suppress(OSError):  # on a full disk the lock still holds, without a name on it
            file.truncate(0)
            file.write(f"process {os.getpid()} ({_command()}, since {time.strftime('%Y-%m-%d %H:%M:%S')})\n".encode())
        yield


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    return " ".join(["python", "-m", module.name, *sys.argv[1:]] if module else sys.argv)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; publish it under `path` by rename when the block succeeds.

    Raises:
        Problem: the system refused to write (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 may notice a full disk when it closes the file: a RuntimeError
        raise refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; publish it under `path` by rename when the block succeeds.

    Raises:
        Problem: the system refused to write (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = temporary.with_suffix(".old.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
        yield temporary
        # Aside first: nobody should find the old folder while it is being emptied.
        with suppress(FileNotFoundError):
            path.replace(old)
        try:
            temporary.replace(path)
        except OSError:
            old.replace(path)
            raise
    except OSError as error:
        raise refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of their attempts to write `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        process = re.match(r"(\d+)\.", left.name.removeprefix(f".{path.name}."))
        if process and (int(process[1]) == os.getpid() or not _alive(int(process[1]))):
            remove(left)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refused(path: Path, error: Exception) -> Problem:
    """The problem that the system refused to write `path`."""
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
