"""chunked-resize and features on a Dask cluster: a scheduler and workers started from the shell, on loopback.

The tests share the scheduler, and are in an order: one ends all workers, the last one the scheduler.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from dask import config

from stages.common.runtime import cluster, connection, paths, remote
from stages.common.runtime.errors import UserError
from tests.cluster import Dask, clean_environment, end
from tests.conftest import ROOT, TINY, extract_features, pretrained_section, set_parameters

pytestmark = pytest.mark.slow

# Another machine, on which some paths do not exist.
HIDE = """
import os, pathlib
stat = os.stat
def other(path, *arguments, **options):
    if "PART" in str(path):
        raise FileNotFoundError(2, "No such file", path)
    return stat(path, *arguments, **options)
os.stat = other
"""
# What a test makes of a worker, before anything else runs in it.
HOOKS = {
    # Ends when it gives its name to a certain chunk file.
    "mortal": """
import os
replace = os.replace
def last(source, target):
    if str(target).endswith("00099.h5"):
        os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = last
""",
    "old library": "import h5py; h5py.__version__ = '1.2.3'",
    "no repository": HIDE.replace("PART", f"{ROOT}/stages"),
    "no chunks": HIDE.replace("PART", ".resized.resume"),
    "no photographs": HIDE.replace("PART", ".jpg"),
    # One in the middle, which this user may not read.
    "a photograph": """
import os
access = os.access
def other(path, *arguments, **options):
    folder, name = os.path.split(path)
    return not (name.endswith(".jpg") and sorted(os.listdir(folder))[80] == name) and access(path, *arguments, **options)
os.access = other
""",
    "old Python": """
from distributed import versions
host = versions.get_system_info
versions.get_system_info = lambda: host() | {"python": "3.4.1.final.0"}
""",
}


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    started = Dask(tmp_path_factory.mktemp("dask"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def worker(dask: Dask) -> subprocess.Popen[bytes]:
    """One that is there for several tests; the last of them ends it."""
    return dask.worker(HOOKS["mortal"])


class Stage:
    """chunked-resize in a folder of its own, as dvc starts it."""

    def __init__(self, folder: Path, drawn: Path, chunk: int) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        names = sorted(path.name for path in (drawn / "images").iterdir())
        (folder / paths.IMAGE_LIST).write_text("".join(f"{name}\n" for name in names))
        shutil.copy(ROOT / "params.yaml", folder)
        set_parameters(folder / "params.yaml", TINY | {"data": str(drawn), "resize.size": 224, "resize.chunk": chunk})

    def start(self, address: str = "", root: Path = ROOT) -> subprocess.Popen[str]:
        environment = {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1", "DASK_SCHEDULER_ADDRESS": address}
        return subprocess.Popen(
            [sys.executable, "-m", "stages.chunked_resize"],
            cwd=self.folder,
            env=clean_environment() | environment | {"DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "2s"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, address: str = "") -> str:
        """Run it; what it prints."""
        process = self.start(address)
        shown = process.communicate(timeout=60)[0]
        assert process.returncode == 0, shown
        return shown

    def fail(self, address: str) -> str:
        """Run it; the one line of its error."""
        return error(self.start(address))

    def pieces(self) -> list[Path]:
        return list(self.folder.glob("data/.resized.resume/*/*.h5"))

    def wait_for_pieces(self, number: int, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 60
        while len(self.pieces()) < number:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.005)

    def written(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / paths.RESIZED).iterdir()}


def error(process: subprocess.Popen[str]) -> str:
    shown = process.communicate(timeout=60)[0]
    assert process.returncode == 1, shown
    assert "Traceback" not in shown
    (line,) = [line for line in shown.splitlines() if line.strip() and "chunked-resize: " not in line]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def local(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What chunked-resize writes on this machine alone: 80 chunks."""
    stage = Stage(tmp_path_factory.mktemp("local") / "stage", drawn, 2)
    assert " on " not in stage.finish()
    return stage.written()


@pytest.fixture
def stage(drawn: Path, tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage", drawn, 2)


def test_without_an_address_dask_is_not_imported(tmp_path: Path) -> None:
    assert asked(tmp_path) == "None False"


def test_the_configuration_file_of_dask_names_the_scheduler(tmp_path: Path) -> None:
    (tmp_path / ".config/dask").mkdir(parents=True)
    (tmp_path / ".config/dask/ours.yaml").write_text("scheduler-address: tcp://node1:8786\n")
    assert asked(tmp_path) == "tcp://node1:8786 True"


def asked(home: Path) -> str:
    """The address that a stage finds, and whether it has imported Dask."""
    code = "import sys; from stages import chunked_resize as c; print(c.jobs.cluster.address(), 'dask' in sys.modules)"
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "HOME": str(home)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_an_address_without_dask_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(UserError, match=r"Dask is not installed: pip install -r requirements-cluster.txt, or unset it"):
        cluster.address()


def test_an_address_where_no_scheduler_answers_is_one_line_after_some_seconds(stage: Stage) -> None:
    with pytest.raises(UserError, match="no Dask scheduler answers at 8786 "):
        cluster.agreed("features", "8786", platform.node)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert f"no Dask scheduler answers at {address} (TimeoutError); start it, " in stage.fail(address)
    assert time.monotonic() - start < 15


def test_another_kind_of_server_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            UserError, match=f"no Dask scheduler answers at {address} .another kind of server.; start it"
        ):
            cluster.agreed("features", address, platform.node)


def test_a_wrong_configuration_of_dask_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".config/dask").mkdir(parents=True)
    (tmp_path / ".config/dask/ours.yaml").write_text("scheduler-address: [tcp\n")
    with pytest.raises(subprocess.CalledProcessError) as ended:
        asked(tmp_path)
    assert "UserError: Dask's configuration can't be read" in ended.value.stderr
    with (
        config.set({"distributed.scheduler.no-workers-timeout": "2x"}),
        pytest.raises(UserError, match="no-workers-timeout is '2x'; expected a time, such as 60"),
    ):
        connection.patience()


def test_a_scheduler_that_dies_while_the_stage_starts_is_one_line(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*arguments: object, **options: object) -> None:
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr("distributed.Client", dead)
    with pytest.raises(UserError, match="no Dask scheduler answers at .*Timed out trying to connect"):
        cluster.agreed("features", dask.address, platform.node)
    with pytest.raises(CancelledError):
        cluster._next(SimpleNamespace(status="closed", scheduler_info=dict), SimpleQueue(), dask.address)


def test_a_worker_that_may_not_read_a_photograph_is_refused(dask: Dask, stage: Stage) -> None:
    """Alone it would skip it, as one that can't be decoded."""
    with dask.another(HOOKS["a photograph"]):
        assert re.search(r"does not see .*\.jpg as the stage does; share this folder", stage.fail(dask.address))


def test_two_workers_one_of_which_is_killed_write_the_bytes_of_the_local_run(
    dask: Dask, worker: subprocess.Popen[bytes], stage: Stage, local: dict[str, bytes]
) -> None:
    other = dask.worker()
    process = stage.start(dask.address)
    stage.wait_for_pieces(20, process)
    other.kill()
    made = {path.name: path.stat().st_mtime_ns for path in stage.pieces()}
    assert len(made) < len(local)
    shown = process.communicate(timeout=60)[0]
    assert process.returncode == 0, shown
    assert f"chunked-resize: on 2 workers of {dask.address}" in shown
    assert "160/160" in shown
    assert worker.poll() is None
    assert stage.written() == local
    again = [name for name, time in made.items() if (stage.folder / paths.RESIZED / name).stat().st_mtime_ns != time]
    assert len(again) <= 2  # those that had just been written, of which the scheduler did not know yet


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("old library", "has h5py 1.2.3; expected"),
        ("no repository", f"does not see {ROOT}; share this folder with it"),
        ("no chunks", r"does not see .*/data/.resized.resume/\w+ as the stage does; share this folder"),
        ("no photographs", r"does not see .*\.jpg as the stage does; share this folder"),
        ("old Python", "has Python 3.4 and distributed"),
    ],
)
def test_a_worker_that_could_give_another_result_is_refused_in_one_line(
    dask: Dask, stage: Stage, hook: str, told: str
) -> None:
    with dask.another(HOOKS[hook]):
        assert re.search(told, stage.fail(dask.address))


@pytest.mark.usefixtures("worker")
def test_workers_that_differ_are_refused_in_one_line(dask: Dask) -> None:
    with dask.another():
        assert cluster.agreed("features", dask.address, platform.node) == platform.node()
        with pytest.raises(UserError, match=r"features: the workers of .* differ, .* expected workers of one kind"):
            cluster.agreed("features", dask.address, os.getpid)  # type: ignore[arg-type]


def test_a_worker_whose_keras_has_no_backend_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "import_module", lambda name: sys.exit("error: KERAS_BACKEND is 'torch'"))
    with pytest.raises(UserError, match="can't import what the stage uses .error: KERAS_BACKEND is 'torch'."):
        remote.work("/", {"stages.common.runtime.backend": ""}, {}, {}, ("os", "getpid"), ())


def test_a_worker_on_another_device_is_refused(tmp_path: Path) -> None:
    from stages import features

    with pytest.raises(UserError, match="a worker runs on CPU .*; expected 1 GPU, as the others: end it"):
        features.extract_chunk(tmp_path, tmp_path, tmp_path, "pooled", "features-backbone", "1 GPU")


@pytest.mark.usefixtures("worker")
def test_a_worker_that_runs_older_code_is_refused_in_one_line(dask: Dask, stage: Stage, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "stages", tmp_path / "new/stages", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "new/stages/common/images/decoding.py").open("a") as file:
        file.write("# a new line\n")
    cluster.agreed("features", dask.address, platform.node)  # the worker loads the code
    line = error(stage.start(dask.address, tmp_path / "new"))
    assert "runs other code of stages.common.images.decoding; start the workers again" in line


@pytest.mark.usefixtures("worker")
def test_a_job_that_ends_every_worker_is_one_line_and_so_are_no_workers(
    dask: Dask, drawn: Path, tmp_path: Path
) -> None:
    dask.worker(HOOKS["mortal"])
    stage = Stage(tmp_path / "stage", drawn, 1)
    line = stage.fail(dask.address)
    assert re.search(
        r"every worker that had the job of 00(099|10\d).h5, or of one beside it, has died: a worker was", line
    )
    assert f"the Dask scheduler {dask.address} has no running worker; start some" in stage.fail(dask.address)
    assert "chunked-resize: resuming: " in stage.finish()


def test_features_have_the_bytes_of_the_local_run(
    dask: Dask, coloured_split: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = pretrained_section()
    extract_features(section)
    expected = {path.name: path.read_bytes() for path in sorted(paths.features("backbone").glob("*.h5"))}
    for path in paths.features("backbone").glob("*.h5"):
        path.unlink()
    dask.worker(threads=2)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", dask.address)
    with config.set({"scheduler-address": dask.address}):  # this process may have read the variable already
        extract_features(section)
    shown = capsys.readouterr().out
    assert "features-backbone: on 1 worker (each does one job at a time: start more, with --nthreads 1) of" in shown
    assert {path.name: path.read_bytes() for path in sorted(paths.features("backbone").glob("*.h5"))} == expected


def test_the_last_one_a_scheduler_that_dies_is_one_line_and_the_next_run_resumes(
    dask: Dask, stage: Stage, local: dict[str, bytes]
) -> None:
    dask.worker()
    process = stage.start(dask.address)
    stage.wait_for_pieces(10, process)
    end(dask.scheduler)
    assert f"the Dask scheduler {dask.address} has died; start it and its workers, then run again" in error(process)
    assert "chunked-resize: resuming: " in stage.finish()
    assert stage.written() == local
