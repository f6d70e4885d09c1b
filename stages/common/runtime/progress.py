"""One kind of progress bar."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int | None, stage: str, unit: str, **options: Any) -> "tqdm[Any]":
    """A bar on stderr, redrawn twice a second on a terminal and every ten seconds in a log."""
    return tqdm(total=total, desc=stage, unit=unit, mininterval=0.5 if sys.stderr.isatty() else 10, **options)
