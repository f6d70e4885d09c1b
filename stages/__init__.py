"""One file a stage of dvc.yaml, with its name, and the commands that are no stages."""

import os
import sys
from types import TracebackType

# The process that started this one, before the libraries have taken their seconds to load.
PARENT = os.getppid()


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ctrl-C while the libraries are loaded, which takes seconds, needs no traceback through all of them."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("\nstopped by SIGINT: run again to go on\n")
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
