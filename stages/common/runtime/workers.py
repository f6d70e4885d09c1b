"""The worker processes of a stage: how they start and end, and what a dead one means."""

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, parent_process

from stages.common.runtime.errors import STOP_SIGNALS, UserError


def prepare() -> None:
    """Make this worker end at once, silently, when it is told to stop and when its parent has died.

    A worker whose parent was killed would otherwise wait for work forever.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)

    def watch() -> None:
        if (parent := parent_process()) is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def starting() -> Iterator[None]:
    """Delay stop signals while a pool starts, at its first job: a half-started pool can't be shut down."""
    waiting: list[int] = []
    handlers = {n: signal.getsignal(n) for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    # Not blocked by a mask: the threads of libraries would receive them.
    for number in handlers:
        signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


@contextmanager
def dead_worker(message: str) -> Iterator[None]:
    """Turn the death of a worker within the block into a `UserError` with this message; also that none can start."""
    try:
        yield
    except OSError as error:
        # The locks between processes are in /dev/shm, which the error does not name.
        if error.filename is None and error.errno in (errno.EROFS, errno.EACCES, errno.ENOENT):
            raise UserError(f"worker processes can't start ({error.strerror}); make /dev/shm writable") from error
        raise
    except BrokenProcessPool as error:
        # A stop signal to all processes of the stage is about to end this one, too.
        time.sleep(1)
        raise UserError(message) from error


def available_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
