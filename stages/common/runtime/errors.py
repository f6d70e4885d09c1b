"""Errors that the user can fix, told in one line. `DEBUG=1` in the environment also shows the traceback."""

import errno
import io
import os
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

# Ctrl-C, kill, and a terminal that is closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Limits and faults of the system. Any other OSError that no caller expected is a bug and keeps its traceback.
SYSTEM_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENAMETOOLONG,
}


# The terminal, also while stderr is turned away from it.
_terminal = 2


class UserError(Exception):
    """What was expected, what was received and how to fix it, in one line."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; end the process with one line on stderr and exit code 1 if the user or the system is at fault.

    A signal that asks to stop ends the process with one line, after cleanup, and exit code 128 + its number. A second
    signal ends it at once.
    """
    global _terminal
    _terminal = os.dup(2) if sys.stderr else 2  # it may be closed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know a character of a file's name
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores the closing of the terminal
            signal.signal(number, _stop)
    try:
        main()
    except UserError as error:
        fail(str(error))
    except MemoryError:
        fail("out of memory; lower the stage's sizes in params.yaml or end other programs, then run again")
    except BrokenPipeError:
        # The reader, such as `head`, has closed. Python must not complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if not is_system_fault(error):
            raise
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}the system reports '{error.strerror}'; fix that, then run again to resume")


def is_system_fault(error: BaseException) -> bool:
    """Whether the system is at fault, so that a file which could not be read may still be whole."""
    return isinstance(error, OSError) and error.errno in SYSTEM_FAULTS


def fail(message: str) -> NoReturn:
    """End the process with `message` as one line on stderr and exit code 1."""
    print_traceback()
    sys.exit(f"error: {printable(' '.join(message.split()))}")


def print_traceback() -> None:
    """Print the traceback of the error that is being handled, if `DEBUG` asks for it."""
    if debugging():
        traceback.print_exc()


def debugging() -> bool:
    """Whether `DEBUG` in the environment asks for more than one line."""
    return os.environ.get("DEBUG", "0") not in ("", "0")


def short(error: BaseException, limit: int = 160) -> str:
    """The text of an error as one line of at most `limit` characters; its type where it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """`text` for a terminal: names of files and labels must not control it, or be bytes that it can't show."""
    return "".join("\ufffd" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") else sign for sign in text)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    os.write(_terminal, f"\nstopped by {signal.Signals(number).name}: run again to resume\n".encode())
    sys.exit(128 + number)
