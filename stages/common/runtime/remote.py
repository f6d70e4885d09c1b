"""Jobs on a Dask cluster: the side of the worker."""

import os
import platform
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.common.runtime.errors import UserError
from stages.common.runtime.resuming import sources, versions

# A worker with several threads does one job at a time: HDF5 files in memory, and TensorFlow, are not for several.
ONE_JOB = threading.Lock()


def work(
    folder: str,
    code: dict[str, str],
    libraries: dict[str, str],
    sizes: dict[str, int],
    function: tuple[str, str],
    arguments: tuple[Any, ...],
) -> Any:
    """Call a function of the project, unless this worker could give another result than the stage's own process.

    Args:
        folder: the current folder of the stage, to which its paths are relative.
        code: digests of its modules.
        libraries: the versions of its libraries.
        sizes: of files that it sees, in bytes; -1: a folder.
        function: module and name.
        arguments: of the function.

    Returns:
        What the function returns.

    Raises:
        UserError: the worker refuses, or what the function raises.
    """
    with ONE_JOB:
        module, name = function
        if refusal := _other_code(code, libraries) or _not_shared(Path(folder), sizes):
            raise UserError(f"the worker process {os.getpid()} on {platform.node()} {refusal}")
        try:
            return getattr(import_module(module), name)(*(_below(Path(folder), argument) for argument in arguments))
        except UserError as error:  # a full disk, for example, of which machine?
            raise UserError(f"on {platform.node()}: {error}") from error


def _other_code(code: dict[str, str], libraries: dict[str, str]) -> str | None:
    try:
        for name in (*code, *libraries):
            import_module(name)
    except (ImportError, SystemExit) as error:  # the latter, of the module backend, would end the worker
        return f"can't import what the stage uses ({error}); start it in an environment with the same packages"
    loaded = sources()
    if other := [name for name, digest in code.items() if loaded.get(name) != digest]:
        return f"runs other code of {', '.join(other[:3])}; start the workers again, after the last change of the code"
    here = versions()
    for name, version in libraries.items():
        if here[name] != version:
            return f"has {name} {here[name]}; expected {version}, as the stage: install the same versions"
    return None


def _not_shared(folder: Path, sizes: dict[str, int]) -> str | None:
    for path, expected in sizes.items():
        if size(folder / path) != expected:
            return f"does not see {folder / path} as the stage does; share this folder with it, under the same path"
    return None


def size(path: Path) -> int | None:
    """Bytes of a file; -1 for a folder; None if there is nothing that this process may read."""
    try:
        if path.is_dir():
            return -1
        return path.stat().st_size if os.access(path, os.R_OK) else None
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _below(folder: Path, value: Any) -> Any:
    """`value` with its relative paths below `folder`: other jobs of this process may be those of other folders."""
    if isinstance(value, dict):
        return {key: _below(folder, each) for key, each in value.items()}
    return folder / value if isinstance(value, Path) else value
