"""One file a stage of dvc.yaml, with its name, and the commands that are no stages."""

import sys
from contextlib import suppress
from types import TracebackType

import psutil


def starter() -> psutil.Process | None:
    """The process that started this stage: dvc, and not the shell that may stand between, as dash and bash differ in it."""
    with suppress(psutil.Error):  # a process that ends just now, or another user's
        for process in psutil.Process().parents():
            if not _started_by_dvc(process):
                return process
    return None


def _started_by_dvc(process: psutil.Process) -> bool:
    try:
        return "DVC_STAGE" in process.environ()
    except psutil.Error:  # another user's, so none that dvc started
        return False


# Before the libraries have taken their seconds to load, in which dvc may die.
STARTER = starter()


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ctrl-C while the libraries are loaded, which takes seconds, needs no traceback through all of them."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("\nstopped by SIGINT: run again to go on\n")
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
