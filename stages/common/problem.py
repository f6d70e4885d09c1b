"""Errors that the user can mend, told in one line."""

import signal
import sys
from collections.abc import Callable


class Problem(Exception):
    """What was expected, what was received and how to mend it, in one line."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; a `Problem`, or a file that the system refuses, ends the process with one line on stderr and exit code 1."""
    # dvc sends SIGTERM to its stages; as an exception it lets `finally` blocks remove temporary files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main()
    except Problem as problem:
        sys.exit(f"error: {' '.join(str(problem).split())}")
    except OSError as error:
        sys.exit(
            f"error: {error.filename or 'a file'}: {error.strerror or error}; expected a file that can be read and written"
        )
    except KeyboardInterrupt:
        sys.exit(130)
