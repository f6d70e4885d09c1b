"""A limit on memory, against small hostile files that expand."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Let this process allocate at most `extra` bytes of address space within the block, if the system can limit that.

    A lower limit of the user's (`ulimit -v`) stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):  # only Linux has /proc, and a system that applies the limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + extra
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def user_limit() -> int | None:
    """The user's limit of address space (`ulimit -v`) in bytes, if there is one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft
