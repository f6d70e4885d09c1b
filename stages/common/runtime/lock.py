"""One process at a time makes a stage's outputs."""

import fcntl
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_error


@contextmanager
def lock(stage: str) -> Iterator[None]:
    """Hold the lock of `stage` in this working tree while the block runs. As a decorator: while the function runs.

    On a file system that machines share it holds for all of them.

    A stage outlives a killed dvc, and the next dvc would start it a second time on the same outputs.

    Raises:
        UserError: another process holds the lock, the lock file can't be written, or the file system has no locks.
    """
    path = paths.lock(stage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise write_error(path, error) from error
    # A POSIX lock: the system releases it when the process dies, however it dies, and workers do not inherit it.
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{stage} is already run by {holder}, which holds {path}; wait until it ends or end it, then run again: "
                "finished work is kept"
            ) from error
        except OSError as error:  # NFS without a lock service, Lustre without the mount option flock
            raise UserError(
                f"{path}: this file system has no locks ({error.strerror}); mount it with locks, or move the clone to a file system with locks"
            ) from error
        with suppress(OSError):  # on a full disk the lock still holds, without a name in it
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} ({_command()}, since {since}, on {platform.node()})\n".encode())
        yield


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    return " ".join(["python", "-m", module.name, *sys.argv[1:]] if module else sys.argv)
