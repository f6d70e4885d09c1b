"""Errors that the user can mend, told in one line."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

# Ctrl-C, kill, and a terminal that is closed.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds for temporary files to be removed and workers to end.
PATIENCE = 5.0


class Problem(Exception):
    """What was expected, what was received and how to mend it, in one line."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; a `Problem`, or a file that the system refuses, ends the process with one line on stderr and exit code 1.

    A signal that asks to stop ends it with one line, too, after temporary files are removed, and 128 + its number.
    """
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores the closing of the terminal
            signal.signal(number, _stop)
    try:
        main()
    except Problem as problem:
        sys.exit(f"error: {' '.join(str(problem).split())}")
    except MemoryError:
        sys.exit("error: out of memory; lower the stage's sizes (params.yaml), or end other programs, then run again")
    except BrokenPipeError:
        # Whoever reads this, as `head` does, has seen enough. Nor must Python complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(
            f"error: {error.filename or 'a file'}: {error.strerror or error}; expected a file that can be read and written"
        )


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, f"\nstopped by {signal.Signals(number).name}: run again to go on\n".encode())
    # A callback in which Python ignores exceptions, or a library that catches all of them, may be at work: say it again.
    sys.unraisablehook = lambda unraisable: None
    signal.signal(signal.SIGALRM, lambda again, frame: sys.exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)
    sys.exit(128 + number)
