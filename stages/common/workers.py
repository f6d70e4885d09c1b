"""The worker processes of a stage: how they start, and what it means that one has died."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, parent_process

from stages.common.problem import STOPPING, Problem


def prepare() -> None:
    """Let this worker end at once when it is told to stop, without a word, and when its parent has died.

    A worker whose parent was killed would otherwise wait for work for ever.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)

    def watch() -> None:
        if (parent := parent_process()) is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def starting() -> Iterator[None]:
    """Let signals that ask to stop wait while a pool starts, at its first job: half started it can't be shut down."""
    waiting: list[int] = []
    heeded = {number: signal.getsignal(number) for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN}
    # Not blocked by a mask: the threads of libraries would take them.
    for number in heeded:
        signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


@contextmanager
def dead(message: str) -> Iterator[None]:
    """Turn the death of a worker within the block into a `Problem` with this message."""
    try:
        yield
    except BrokenProcessPool as error:
        # A signal to all processes of the stage reaches this one, too, and ends it here: now, or when it is said again.
        time.sleep(1 + signal.getitimer(signal.ITIMER_REAL)[0])
        raise Problem(message) from error
