"""Jobs on a Dask cluster: the side of the stage. `remote` is the side of the worker."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from stages.common.runtime.connection import connected, no_workers, patience, workers_of
from stages.common.runtime.errors import UserError, short
from stages.common.runtime.remote import size
from stages.common.runtime.resuming import sources, versions

if TYPE_CHECKING:
    from distributed import Client


def address() -> str | None:
    """The address of the scheduler that Dask's configuration names, if any: its variables and its files.

    Raises:
        UserError: there is an address, and Dask is not installed.
    """
    places = os.environ.get("DASK_ROOT_CONFIG", "/etc/dask"), Path(sys.prefix, "etc/dask"), Path.home() / ".config/dask"
    variables = {"DASK_SCHEDULER_ADDRESS", "DASK_CONFIG"} & os.environ.keys()
    if not variables and not any(Path(place).exists() for place in places):
        return None  # who has no configuration does not wait for the import
    from yaml import YAMLError

    try:
        import dask.config
    except (ValueError, YAMLError) as error:
        raise UserError(
            f"Dask's configuration can't be read ({short(error)}); correct DASK_CONFIG or the files in ~/.config/dask"
        ) from error
    except ImportError as error:
        if "DASK_SCHEDULER_ADDRESS" not in os.environ:
            return None
        raise UserError(
            "DASK_SCHEDULER_ADDRESS is set, but Dask is not installed: pip install -r requirements-cluster.txt, or unset it"
        ) from error
    found = dask.config.get("scheduler-address", None)
    return str(found) if found else None  # a port alone is a number


def run(
    stage: str,
    address: str,
    function: Callable[..., None],
    jobs: Mapping[Path, tuple[Any, ...]],
    done: Callable[[Path], object],
    needs: Iterable[Path],
    dead: str,
) -> None:
    """`jobs.run` on the cluster of the scheduler at `address`."""
    with connected(address) as client:
        tqdm.write(f"{stage}: on {workers_of(client)} of {address}")  # above the progress bar
        entry, (*same, sizes) = _entry(), _expected(needs)
        finished: SimpleQueue[Any] = SimpleQueue()
        futures: dict[Any, Path] = {}
        for piece, arguments in jobs.items():
            seen = sizes | _sizes(path for path in _paths(arguments) if path != piece)
            future = client.submit(entry, *same, seen, _name(function), arguments, pure=False)
            futures[future] = piece
            future.add_done_callback(finished.put)
        while futures:
            future = _next(client, finished, address)
            piece = futures.pop(future)  # a future that is kept is computed again when its worker dies
            # Not its result, for which a dead worker would have to be asked.
            if future.status == "cancelled":
                raise CancelledError
            if future.status == "error":
                raise _told(future.exception(), piece, dead)
            done(piece)


def agreed(stage: str, address: str, function: Callable[[], str]) -> str:
    """What `function()` returns on every worker of the cluster.

    Raises:
        UserError: they do not all return the same.
    """
    with connected(address) as client:
        answers = client.run(_in_thread(_entry()), *_expected([]), _name(function), (), on_error="return")
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise _told(answer)
    found = {str(answer): worker for worker, answer in answers.items()}
    if len(found) != 1:
        told = "; ".join(f"{worker}: {answer}" for answer, worker in sorted(found.items())) or "none answered"
        raise UserError(
            f"{stage}: the workers of {address} differ, and so would results by their rounding ({told}); expected workers of "
            "one kind: end the others"
        )
    return next(iter(found))


def _next(client: "Client", finished: SimpleQueue[Any], address: str) -> Any:
    """The next future that has ended.

    Raises:
        UserError: for a while no worker has run.
    """
    waited = 0
    while True:
        try:
            return finished.get(timeout=1)
        except Empty:
            if client.status != "running":
                raise CancelledError from None
            states = {worker["status"] for worker in client.scheduler_info()["workers"].values()}
            waited = 0 if "running" in states else waited + 1
            if waited >= patience():
                raise no_workers(address) from None


def _told(error: Exception, piece: Path | None = None, dead: str = "") -> Exception:
    """The error of a job, in one line if the user can fix it."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker) and piece:
        # Dask also suspects the job that was next on these workers.
        return UserError(f"every worker that had the job of {piece.name}, or of one beside it, has died: {dead}")
    return UserError(str(error)) if isinstance(error, ImportError) else error


def _expected(needs: Iterable[Path]) -> tuple[Any, ...]:
    """What a worker must have: this code, this folder, and files as large as here."""
    root = Path(__file__).resolve().parents[3]
    return str(root), str(Path.cwd()), sources(), versions(), _sizes(needs)


def _sizes(files: Iterable[Path]) -> dict[str, int | None]:
    return {str(path): size(path) for path in files if path.exists()}


def _paths(value: Any) -> Iterator[Path]:
    """The paths in the arguments of a job."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _paths(each)


def _name(function: Callable[..., Any]) -> tuple[str, str]:
    module = sys.modules[function.__module__]
    return (module.__spec__.name if module.__spec__ else module.__name__), function.__qualname__


def _entry() -> Callable[..., Any]:
    """What a worker calls. Nested, so that Dask sends its code: by name a worker could not find it before it has run."""

    def entry(root: str, *job: Any) -> Any:
        import sys
        from importlib import import_module
        from pathlib import Path
        from platform import node

        if "stages" not in sys.modules and not Path(root, "stages").is_dir():
            raise ImportError(
                f"the worker on {node()} does not see {root}; share this folder with it, under the same path"
            )
        if "stages" not in sys.modules:
            sys.path.insert(0, root)
        return import_module("stages.common.runtime.remote").work(*job)

    return entry


def _in_thread(entry: Callable[..., Any]) -> Callable[..., Any]:
    """`entry` for `Client.run`, without stopping the worker's event loop while libraries are imported."""

    async def answer(*job: Any) -> Any:
        from asyncio import to_thread

        return await to_thread(entry, *job)

    return answer
