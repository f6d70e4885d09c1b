"""One file a stage of dvc.yaml, with its name, and the commands that are no stages."""

import sys
from types import TracebackType

import psutil


def starter() -> psutil.Process | None:
    """The process that started this stage: dvc, and not the shell that may stand between, as dash and bash differ in it."""
    for process in psutil.Process().parents():
        try:
            environment = process.environ()
        except psutil.Error:  # somebody else's process, so none that dvc started
            return process
        if "DVC_STAGE" not in environment:
            return process
    return None


# Before the libraries have taken their seconds to load, in which dvc may die.
STARTER = starter()


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ctrl-C while the libraries are loaded, which takes seconds, needs no traceback through all of them."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("\nstopped by SIGINT: run again to go on\n")
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
