"""A stage's jobs, each of which writes one piece of its output: on this machine, or on a Dask cluster if there is one.

Where they run is no parameter, and changes no result.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from stages.common.runtime import cluster
from stages.common.runtime.workers import dead_worker, prepare, starting


def run(
    stage: str,
    function: Callable[..., None],
    jobs: Mapping[Path, tuple[Any, ...]],
    done: Callable[[Path], object],
    *,
    processes: int,
    needs: Iterable[Path],
    dead: str,
) -> None:
    """Call `function(*arguments)` for each job, and `done(piece)` in this process as soon as a job has ended.

    Args:
        stage: for messages.
        function: a function of a module. It writes atomically, as a job may run twice if a worker dies.
        jobs: the arguments by the piece that the job writes. Only names and numbers: paths, relative to the current folder
            where they are in it, dicts of them, text, integers.
        processes: on this machine; 0: one after the other in this process.
        needs: paths that the workers of a cluster must see.
        dead: what a dead worker means, and how to fix it.

    Raises:
        UserError: a worker was killed, the cluster can't be used, or what `function` raises.
    """
    if not jobs:
        return
    if address := cluster.address():
        cluster.run(stage, address, function, jobs, done, needs, dead)
    elif processes == 0:
        for piece, arguments in jobs.items():
            function(*arguments)
            done(piece)
    else:
        _run_here(function, jobs, done, processes, dead)


def _run_here(
    function: Callable[..., None],
    jobs: Mapping[Path, tuple[Any, ...]],
    done: Callable[[Path], object],
    processes: int,
    dead: str,
) -> None:
    with dead_worker(dead), ProcessPoolExecutor(min(processes, len(jobs)), initializer=prepare) as pool:
        try:
            with starting():
                futures = {pool.submit(function, *arguments): piece for piece, arguments in jobs.items()}
            for future in as_completed(futures):
                future.result()
                done(futures[future])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def where(stage: str, function: Callable[[], str]) -> str:
    """What `function()` says of the processes in which the jobs will run, such as their device.

    Raises:
        UserError: the cluster can't be used, or its workers do not all say the same.
    """
    address = cluster.address()
    return cluster.agreed(stage, address, function) if address else function()
