"""What a worker process of a stage does first."""

import os
import signal
import threading
from multiprocessing import connection, parent_process

from stages.common.problem import STOPPING


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
