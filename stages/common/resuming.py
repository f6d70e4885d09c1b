"""What a stage has done so far, kept beside its output until the output is whole.

dvc deletes a stage's outputs before it runs the stage, so they can't be continued themselves.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages import STARTER, starter
from stages.common.files import remove

# Libraries whose version may change a result.
LIBRARIES = ("PIL", "h5py", "jax", "keras", "numpy", "pandas", "sklearn", "tensorflow")


@contextmanager
def resumable(out: Path, *depends: Any) -> Iterator[Path]:
    """Yield a folder for finished pieces of work, as the last run with the same `depends` left it.

    It lies beside `out` and is removed when the block succeeds. What runs with other `depends` left is removed at once.

    Args:
        out: what the pieces are for.
        depends: all that the pieces depend on, as JSON values.
    """
    text = json.dumps(depends, sort_keys=True)
    store = out.with_name(f".{out.name}.resume")
    folder = store / hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    if store.is_dir():
        for other in store.iterdir():
            if other != folder:
                remove(other)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    # Without the dvc that started it a stage is not recorded as done: the next dvc deletes the output and needs the pieces.
    if starter() == STARTER:
        remove(store)


def code() -> list[Any]:
    """The source of the project's modules that are loaded, and the versions of what they stand on."""
    sources = {
        hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
        for name, module in list(sys.modules.items())
        if _ours(name, module) and module.__file__
    }
    versions = {name: str(getattr(sys.modules[name], "__version__", "")) for name in LIBRARIES if name in sys.modules}
    return [sorted(sources), versions, platform.python_version()]


def _ours(name: str, module: Any) -> bool:
    specification = getattr(module, "__spec__", None)
    return (specification.name if specification else name).split(".")[0] == "stages"


def state(paths: Iterable[Path]) -> str:
    """A digest of path, inode, size, time of change and permissions of each file: by the first four dvc, too, sees changes."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(repr((str(path), *_status(path))).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _status(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def publish(pieces: Iterable[Path], folder: Path) -> None:
    """Put files into `folder` under their own names, without a second copy of their bytes where the file system can."""
    for piece in pieces:
        try:
            os.link(piece, folder / piece.name)
        except OSError:
            shutil.copyfile(piece, folder / piece.name)
