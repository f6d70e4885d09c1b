"""A Dask cluster on loopback: a scheduler and workers, started from the shell."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REMOVED = {"PYTHONPATH", "DVC_STAGE", "DASK_SCHEDULER_ADDRESS"}


class Dask:
    """A scheduler, and workers whose folder and path do not have the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hooks = 0
        (folder / "empty").mkdir()
        file = folder / "scheduler.json"
        # Two deaths of workers are the job's fault.
        self.scheduler = self._start(
            *("scheduler", "--port", "0", "--scheduler-file", str(file)),
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1",
        )
        self.address = self._wait_for(file)

    def _start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--host", "127.0.0.1", "--no-dashboard"],
                cwd=self.folder / "empty",
                env=clean_environment() | environment,
                stdout=log,
                stderr=log,
            )

    def _wait_for(self, file: Path) -> str:
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text().strip().endswith("}")):
            assert time.monotonic() < end, (self.folder / "log.txt").read_text()
            time.sleep(0.02)
        return str(json.loads(file.read_text())["address"])

    def worker(self, hook: str = "", threads: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny, and wait until it is at the scheduler. It runs the code `hook` first."""
        self._hooks += 1
        place = self.folder / f"hook{self._hooks}"
        place.mkdir()
        (place / "sitecustomize.py").write_text(hook)
        before = self._known()
        process = self._start(
            *("worker", self.address, "--no-nanny", "--nthreads", str(threads)),
            *("--local-directory", str(self.folder)),
            PYTHONPATH=str(place),
        )
        end = time.monotonic() + 60
        while self._known() == before:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        return process

    def _known(self) -> int:
        """How many workers have ever come."""
        return (self.folder / "log.txt").read_text().count("Register worker")

    @contextmanager
    def another(self, hook: str = "") -> Iterator[None]:
        """A worker more, for a while."""
        process = self.worker(hook)
        try:
            yield
        finally:
            end(process)

    def close(self) -> None:
        end(self.scheduler)


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead a worker to the project."""
    return {key: value for key, value in os.environ.items() if key not in REMOVED}


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
