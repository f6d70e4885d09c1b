"""A connection to a Dask cluster: its scheduler answers, has workers, and runs the same versions."""

import asyncio
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stages.common.runtime.errors import UserError, short

if TYPE_CHECKING:
    from distributed import Client

MAX_SECONDS = 8  # in which a scheduler must answer
# Seconds to wait for a first worker, or another one when all have died, unless Dask's configuration says.
MAX_SECONDS_WITHOUT_WORKERS = 60.0


@contextmanager
def connected(address: str) -> Iterator["Client"]:
    """A client of the scheduler, which has workers.

    Raises:
        UserError: it does not answer, has no workers, runs another Python, or dies within the block.
    """
    from distributed import Client
    from distributed.comm import CommClosedError
    from distributed.versions import VersionMismatchWarning

    for name in ("distributed", "distributed.client", "asyncio"):  # errors are told in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _check_answer(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # the versions that matter are checked
        try:
            client = Client(address, timeout=MAX_SECONDS, set_as_default=False)
        except OSError as error:
            raise _no_answer(address, error) from error
    try:
        _wait_for_workers(client, address)
        _check_versions(client)
        yield client
    except (CancelledError, CommClosedError) as error:
        raise UserError(
            f"the Dask scheduler {address} has died; start it and its workers, then run again to resume"
        ) from error
    finally:
        client.close(timeout=2)


def _check_answer(address: str) -> None:
    # By itself Client waits for ever if something listens there and is silent.
    from distributed import rpc
    from distributed.security import Security

    async def ask() -> None:
        async with rpc(address, connection_args=Security().get_connection_args("client")) as scheduler:
            await scheduler.identity()

    try:
        asyncio.run(asyncio.wait_for(ask(), MAX_SECONDS))
    except (OSError, TypeError, ValueError, MemoryError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: BaseException) -> UserError:
    # What another server says first is read as a length, perhaps an impossible one.
    reason = "another kind of server" if isinstance(error, MemoryError) else short(error)
    return UserError(
        f"no Dask scheduler answers at {address} ({reason}); start it, correct DASK_SCHEDULER_ADDRESS, or unset it "
        "to run on this machine"
    )


def _wait_for_workers(client: "Client", address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=patience())
    except TimeoutError as error:
        raise no_workers(address) from error


def patience() -> float:
    """Seconds to wait for a worker: Dask's own setting."""
    import dask.config
    from dask.utils import parse_timedelta

    told = dask.config.get("distributed.scheduler.no-workers-timeout", None)
    try:
        return MAX_SECONDS_WITHOUT_WORKERS if told is None else float(parse_timedelta(told))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"Dask's distributed.scheduler.no-workers-timeout is {told!r}; expected a time, such as 60 or 2 minutes"
        ) from error


def no_workers(address: str) -> UserError:
    return UserError(
        f"the Dask scheduler {address} has no running worker; start some (dask worker {address} --nthreads 1 --nworkers -1), "
        "then run again to resume"
    )


def _check_versions(client: "Client") -> None:
    # Before any code travels: another Python can't read it.
    found = client.get_versions()
    expected = _of(found["client"])
    for name, seen in {"the scheduler": found["scheduler"], **found["workers"]}.items():
        if _of(seen) != expected:
            raise UserError(
                f"{name} of the Dask cluster has {_of(seen)}; expected {expected}, as here: start it in an environment with "
                "the same versions"
            )


def _of(versions: dict[str, Any]) -> str:
    python = ".".join(versions["host"]["python"].split(".")[:2])
    return f"Python {python} and distributed {versions['packages']['distributed']}"


def workers_of(client: "Client") -> str:
    threads = client.nthreads().values()
    hint = " (each does one job at a time: start more, with --nthreads 1)" if max(threads, default=1) > 1 else ""
    return f"{len(threads)} worker{'s' * (len(threads) != 1)}{hint}"
