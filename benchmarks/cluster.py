"""chunked-resize and features on a Dask cluster of this machine: 1, 2 and 4 workers beside the local run, and many chunks."""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

from benchmarks.growth import MODEL, NETWORK, ROOT, prepare
from stages.common.runtime import paths
from tests.cluster import Dask, end
from tests.conftest import set_parameters

IMAGES = 1_000
MANY = 10_000
WORKERS = (1, 2, 4)
REPETITIONS = 3
STAGES = {
    "chunked-resize": (["chunked_resize"], paths.RESIZED),
    "features": (["features", MODEL], paths.features(MODEL)),
}

NOTES = f"""
Scheduler and workers (`--nthreads 1`) on this machine, from the shell; *local*: without Dask. {IMAGES:,} photographs in chunks of 64,
features of {NETWORK} with random weights; medians of {REPETITIONS}, in turns. *{MANY:,} chunks*: as many photographs at 32
pixels, a chunk each, once: what a job costs beside its work. *Memory*: the highest resident memory of a worker, and of the
scheduler, read after each stage. All outputs of a stage had the same bytes.
"""


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """One row for each stage and number of workers."""
    folder = work / "few"
    prepare(photographs, folder, IMAGES)
    (work / "dask").mkdir()
    cluster = Dask(work / "dask")
    try:
        rows = [row for stage in STAGES for row in _stage(stage, folder, cluster, WORKERS, REPETITIONS)]
        shutil.rmtree(folder)
        folder = work / "many"
        prepare(photographs, folder, MANY)
        set_parameters(folder / paths.PARAMETERS, {"resize.size": 32, "resize.chunk": 1})
        many = _stage("chunked-resize", folder, cluster, (2,), 1)
        return pd.DataFrame(rows + [row | {"stage": f"chunked-resize, {MANY:,} chunks"} for row in many])
    finally:
        cluster.close()


def _stage(
    stage: str, folder: Path, cluster: Dask, workers: tuple[int, ...], repetitions: int
) -> list[dict[str, object]]:
    command, out = STAGES[stage]
    seconds: dict[int, list[float]] = {count: [] for count in (0, *workers)}
    memory = dict.fromkeys(seconds, 0.0)
    scheduler = psutil.Process(cluster.scheduler.pid)
    load, of_scheduler = dict.fromkeys(seconds, 0.0), dict.fromkeys(seconds, 0.0)
    digests = set()
    for _ in range(repetitions):
        for count in seconds:
            started = [cluster.worker() for _ in range(count)]
            try:
                before = scheduler.cpu_times()
                seconds[count].append(_run(command, folder, cluster.address if count else None))
                after = scheduler.cpu_times()
                load[count] = after.user + after.system - before.user - before.system
                of_scheduler[count] = scheduler.memory_info().rss / 1e6
                memory[count] = max(
                    [memory[count], *(psutil.Process(each.pid).memory_info().rss / 1e6 for each in started)]
                )
            finally:
                for each in started:
                    end(each)
            digests.add(_digest(folder / out))
    if len(digests) != 1:
        raise AssertionError(f"{stage}: the outputs differ")
    return [
        {
            "stage": stage,
            "workers": count or "local",
            "seconds": statistics.median(each),
            "worker, MB": memory[count] if count else None,
            "scheduler, CPU s": load[count] if count else None,
            "scheduler, MB": of_scheduler[count] if count else None,
        }
        for count, each in seconds.items()
    ]


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _run(command: list[str], folder: Path, address: str | None) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if address:
        environment["DASK_SCHEDULER_ADDRESS"] = address
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"stages.{command[0]}", *command[1:]],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start
