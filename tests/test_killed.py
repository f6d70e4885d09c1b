"""Stages that are killed, stopped, started twice or run out of disk: nothing is lost, nothing is half there."""

import fnmatch
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stages.common.runtime import paths
from tests.conftest import ROOT, TINY, Clone, Finished, set_parameters
from tests.forks import Forks
from tests.test_dvc_yaml import STAGES
from tests.test_reproducible import md5s

pytestmark = pytest.mark.slow

PARAMETERS = TINY | {
    "sample.images": 240,
    "resize.size": 96,
    "resize.chunk": 12,
    "model": "backbone",
    "scratch.epochs": 6,
    "scratch.filters": [8, 8],
    "scratch.augment": True,
    "pretrain.epochs": 6,
    "backbone.epochs": 4,
    "backbone.patience": 4,
    "backbone.head": "conv",
    "backbone.fine_tune_epochs": 3,
}
# In the order of the pipeline.
ORDER = [
    "params",
    "sample",
    "annotate",
    "split",
    "chunked-resize",
    "chunked-resize-unlabelled",
    "audit",
    "pretrain-selfsupervised",
    "train-scratch",
    "features-backbone",
    "train-backbone",
    "infer-backbone",
    "evaluate",
    "explain",
    "report",
]
TRAIN = "models/dvc.yaml:train-scratch"
LOCK = "data/.train-scratch.lock"
HEAVY = ("features", "pretrain", "train", "infer")
RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
# A write has two moments: when the temporary file is whole, and when it has got its name.
KILL_AFTER_WRITES = """
import os, signal
left, fsync, replace = {}, os.fsync, os.replace
def count():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def counted_fsync(file):
    count()
    fsync(file)
def counted_replace(*paths):
    replace(*paths)
    count()
os.fsync, os.replace = counted_fsync, counted_replace
"""
STATES_TIME = re.compile(r"timing|training\.json|report\.html")


def outs(stage: str) -> list[Path]:
    """What a stage writes, as dvc.yaml says."""
    listed: list[Any] = [out for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]
    names = [out if isinstance(out, str) else next(iter(out)) for out in listed]
    return [Path(name.replace("${model}", "backbone")) for name in names]


def digests(stage: str, folder: Path) -> dict[str, str]:
    """The md5 of each file that a stage writes, those apart that state time."""
    paths = [path for out in outs(stage) for path in [folder / out, *(folder / out).rglob("*")] if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in paths
        if not STATES_TIME.search(str(path))
    }


def hidden(folder: Path) -> list[str]:
    """What is left beside the outputs: pieces of unfinished work and temporary files; locks apart."""
    found = [path for path in folder.rglob(".*") if path.name.startswith(".") and path.suffix != ".lock"]
    return sorted(path.name for path in found)


class Started:
    """A stage as a process of its own, as dvc starts it: its outputs are deleted first."""

    forks: Forks

    def __init__(self, stage: str, folder: Path, before: str = "") -> None:
        for out in outs(stage):
            shutil.rmtree(folder / out, ignore_errors=True)
            (folder / out).unlink(missing_ok=True)
        self.stage = stage
        self.log = folder / "log.txt"
        self.process = self.forks.start(before + RUN, STAGES[stage]["cmd"].split()[2:], folder, self.log)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until the stage has printed `text`, or has ended."""
        end = time.monotonic() + 120
        while text not in self.output and self.process.poll() is None:
            assert time.monotonic() < end, self.output
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """Signal all processes of the stage, as a terminal does at Ctrl-C, and wait for the end."""
        with suppress(ProcessLookupError):  # it was faster
            os.killpg(self.process.pid, number)
        self.process.wait()

    def finish(self) -> None:
        """Wait for success."""
        assert self.process.wait() == 0, self.output


def loaded(stage: str) -> str:
    """What a stage prints when its libraries are loaded and its work begins; nothing for those that load in no time."""
    return "on CPU" if stage.startswith(HEAVY) else ""


class Straight(NamedTuple):
    """A folder in which every stage has run without a break, and the seconds that each has worked."""

    folder: Path
    seconds: dict[str, float]

    def digests(self, stage: str) -> dict[str, str]:
        return digests(stage, self.folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Straight]:
    folder = tmp_path_factory.mktemp("straight")
    shutil.copy(ROOT / "params.yaml", folder)
    set_parameters(folder / "params.yaml", PARAMETERS)
    (folder / paths.EXTRA).mkdir(parents=True)
    seconds: dict[str, float] = {}
    with Forks(PYTHONPATH=str(ROOT), PYTHONHASHSEED="1") as Started.forks:
        for stage in ORDER:
            started = Started(stage, folder)
            started.wait_for(loaded(stage))
            begin = time.perf_counter()
            started.finish()
            seconds[stage] = time.perf_counter() - begin
    assert hidden(folder) == []
    # Another process, with another order of sets: what is killed and resumed must not depend on it.
    with Forks(PYTHONPATH=str(ROOT), PYTHONHASHSEED="2") as Started.forks:
        yield Straight(folder, seconds)


@pytest.fixture
def folder(straight: Straight, tmp_path: Path) -> Path:
    return shutil.copytree(straight.folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "stage", [stage for stage in ORDER if stage not in ("chunked-resize-unlabelled", "train-backbone")]
)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(straight: Straight, folder: Path, stage: str) -> None:
    expected = straight.digests(stage)
    generator = random.Random(stage)  # noqa: S311
    # Most of a stage with Keras is its start: one of them gets the signals that can be handled.
    heavy = stage.startswith((*HEAVY, "explain")) and stage != "train-scratch"
    handled = [] if heavy else [signal.SIGTERM, signal.SIGINT]
    for number in (signal.SIGKILL, *handled):
        started = Started(stage, folder)
        started.wait_for(loaded(stage))
        time.sleep(generator.uniform(0, straight.seconds[stage]))
        started.send(number)
        if number != signal.SIGKILL and started.process.returncode == 128 + number:
            assert f"stopped by {signal.Signals(number).name}: run again to resume" in started.output
            assert "Traceback" not in started.output
        assert digests(stage, folder).items() <= expected.items()  # whole files or none
    Started(stage, folder).finish()
    assert digests(stage, folder) == expected
    assert hidden(folder) == []


INTERRUPT_IMPORT = """
import os, signal, sys, threading, time
def interrupt():
    while "tensorflow" not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""


def test_ctrl_c_while_libraries_are_loaded_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPT_IMPORT + RUN, *STAGES["train-scratch"]["cmd"].split()[2:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGINT, ended.stderr
    assert (ended.stdout + ended.stderr).strip() == "stopped by SIGINT: run again to resume"


@pytest.mark.parametrize("stage", ["annotate", "split", "chunked-resize", "audit", "train-scratch", "report"])
def test_killed_while_it_writes_it_ends_with_the_same_bytes(straight: Straight, folder: Path, stage: str) -> None:
    expected = straight.digests(stage)
    light = not stage.startswith(HEAVY)
    step = 2 if stage in ("audit", "report") else 1  # they take seconds
    for writes in range(0, 12, step) if light else (3, 9):
        started = Started(stage, folder, before=KILL_AFTER_WRITES.format(writes))
        ended = started.process.wait() == 0
        assert digests(stage, folder).items() <= expected.items()
        if ended and light:
            break
    Started(stage, folder).finish()
    assert digests(stage, folder) == expected
    assert hidden(folder) == []


@pytest.mark.parametrize("stage", ["annotate", "chunked-resize"])
def test_no_worker_outlives_its_stage(folder: Path, stage: str) -> None:
    started = Started(stage, folder)
    children = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children")
    while not (workers := children.read_text().split()):
        assert started.process.poll() is None
    started.process.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_is_not_taken_for_a_dead_worker(folder: Path, number: int) -> None:
    for _ in range(5):
        started = Started("chunked-resize", folder)
        started.wait_for("0%")
        started.send(number)
        assert started.process.returncode in (128 + number, 0), started.output
        assert "worker" not in started.output
        shutil.rmtree(folder / "data/.resized.resume", ignore_errors=True)


@pytest.mark.parametrize("stage", ["annotate", "chunked-resize"])
def test_a_signal_while_the_workers_start_is_one_line(folder: Path, stage: str) -> None:
    before = """
import os, signal
from concurrent.futures import process
class Manager(process._ExecutorManagerThread):
    def start(self):
        os.kill(os.getpid(), signal.SIGTERM)
        super().start()
process._ExecutorManagerThread = Manager
"""
    started = Started(stage, folder, before=before)
    assert started.process.wait() == 128 + signal.SIGTERM, started.output
    assert "stopped by SIGTERM: run again to resume" in started.output
    assert "Traceback" not in started.output


def epochs(output: str) -> list[int]:
    return [int(number) for number in re.findall(r": epoch (\d+) \(", output)]


def test_no_epoch_is_trained_again_but_the_one_that_was_lost(straight: Straight, folder: Path) -> None:
    stage = "train-backbone"
    seen: list[list[int]] = []
    generator = random.Random(1)  # noqa: S311
    # Between the two phases, within fine-tuning, and within what is trained again.
    moments = {
        ": epoch 4 (": signal.SIGTERM,
        ": epoch 6 (": signal.SIGINT,
        "(refit-head)": signal.SIGKILL,
    }
    for sign, number in moments.items():
        started = Started(stage, folder)
        started.wait_for(sign)
        time.sleep(generator.uniform(0, 0.2))
        started.send(number)
        seen.append(epochs(started.output))
    last = Started(stage, folder)
    last.finish()
    seen.append(epochs(last.output))
    for earlier, later in itertools.pairwise(seen):
        assert earlier[-1] <= later[0] <= earlier[-1] + 1
    timing = json.loads((folder / "models/backbone/timing/train.json").read_text(encoding="utf-8"))
    assert seen[-1][-1] == timing["epochs"] > 8
    assert f"{stage}: resuming: 4/4 epochs of phase head done" in last.output
    assert digests(stage, folder) == straight.digests(stage)
    assert hidden(folder) == []


@pytest.mark.parametrize("stage", ["chunked-resize", "features-backbone"])
def test_no_chunk_is_made_again(straight: Straight, folder: Path, stage: str) -> None:
    (out,) = [out for out in outs(stage) if out.parts[0] == "data"]
    pieces = folder / out.with_name(f".{out.name}.resume")
    started = Started(stage, folder)
    while len(list(pieces.glob("*/*.h5"))) < 4:
        assert started.process.poll() is None, started.output
    started.send(signal.SIGKILL)
    made = {path.name: path.stat().st_mtime_ns for path in pieces.glob("*/*.h5")}
    last = Started(stage, folder)
    last.finish()
    assert f"{stage}: resuming: {len(made)}/15 chunks done" in last.output
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in (folder / out).iterdir()}.items()
    assert digests(stage, folder) == straight.digests(stage)


def test_the_work_of_another_seed_is_removed_not_resumed(folder: Path) -> None:
    kept = folder / "models/scratch/.model.keras.resume"
    runs: list[str] = []
    for seed, sign in ((1, ": epoch 2 ("), (2, ": epoch 2 ("), (2, ": epoch ")):
        set_parameters(folder / "params.yaml", {"seed": seed})
        started = Started("train-scratch", folder)
        started.wait_for(sign)
        started.send(signal.SIGKILL)
        runs.append(started.output)
        assert len(list(kept.iterdir())) == 1
    assert ["resuming" in run for run in runs] == [False, False, True]


def test_a_second_process_says_which_one_holds_the_stage(straight: Straight, folder: Path) -> None:
    first = Started("train-scratch", folder)
    first.wait_for(": epoch 2 (")
    first.process.send_signal(signal.SIGSTOP)
    second = subprocess.run(
        [sys.executable, "-m", "stages.train", "scratch"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert f"train-scratch is already run by process {first.process.pid} (python -m stages.train scratch, since" in line
    assert f"which holds {LOCK}" in line
    first.process.send_signal(signal.SIGCONT)
    first.finish()
    assert digests("train-scratch", folder) == straight.digests("train-scratch")


@pytest.mark.parametrize(
    ("stage", "most", "named"),
    [
        ("chunked-resize", 100, "data/.resized.resume/*.h5"),
        ("features-backbone", 1000, "data/features/.backbone.resume/*/backbone.keras"),
        ("train-scratch", 100, "models/scratch/.model.keras.resume/*/scratch.npz"),
        ("infer-backbone", 1, "models/backbone/.predictions.csv.resume/*.npz"),
        ("infer-backbone", 6, "models/backbone/predictions.csv"),
        ("evaluate", 1, "plots/*.csv"),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_path_and_keeps_finished_work(
    straight: Straight, folder: Path, stage: str, most: int, named: str
) -> None:
    command = f"ulimit -f {most}; {STAGES[stage]['cmd']} 2>&1 | cat; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert fnmatch.fnmatch(line, f"error: could not write {named}: File too large; free disk space *")
    assert "Traceback" not in result.stdout
    assert digests(stage, folder) == straight.digests(stage)  # the older output is as it was
    assert not [name for name in hidden(folder) if name.endswith((".tmp", ".keras"))]


@pytest.fixture(scope="module")
def before_training(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A repository in which dvc has run everything before the training."""
    clone = finished.copy(tmp_path_factory.mktemp("before") / "clone")
    clone.set(scratch__epochs=12, scratch__patience=12)
    clone.run("git", "commit", "-qam", "More epochs")
    clone.run("dvc", "repro", "chunked-resize")
    (clone.path / LOCK).unlink()  # of the earlier training
    return clone


@pytest.fixture(scope="module")
def origin(before_training: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """One in which dvc has run the training without a break."""
    clone = Clone(shutil.copytree(before_training.path, tmp_path_factory.mktemp("origin") / "clone", symlinks=True))
    clone.run("dvc", "repro", TRAIN)
    return clone


@pytest.fixture
def clone(before_training: Clone, tmp_path: Path) -> Clone:
    return Clone(shutil.copytree(before_training.path, tmp_path / "clone", symlinks=True))


# bash becomes the stage that it runs; dash waits for it, a process between dvc and the stage.
@pytest.mark.parametrize(
    ("shell", "sign"), [("/bin/bash", "> python -m stages.train scratch"), ("/bin/sh", ": epoch 2 (")]
)
def test_a_stage_orphaned_by_a_killed_dvc_is_named_and_its_work_is_not_lost(
    sign: str, shell: str, origin: Clone, clone: Clone, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        environment = os.environ | {"SHELL": shell}
        dvc = subprocess.Popen(["dvc", "repro", TRAIN], cwd=clone.path, stdout=file, stderr=file, env=environment)
    while sign not in log.read_text():
        assert dvc.poll() is None, log.read_text()
        time.sleep(0.01)
    lock = clone.path / LOCK
    if "epoch" in sign:  # there are no more than some hundredths of a second to the last one
        os.kill(int(lock.read_text().split()[1]), signal.SIGSTOP)
    time.sleep(0.5)
    dvc.kill()
    dvc.wait()
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    stage = int(lock.read_text().split()[1])
    os.kill(stage, signal.SIGSTOP)
    shown = clone.run("dvc", "repro", TRAIN, ok=False)
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert f"train-scratch is already run by process {stage} (python -m stages.train scratch, since" in line
    assert "Traceback" not in shown
    os.kill(stage, signal.SIGCONT)
    while Path(f"/proc/{stage}").exists():
        time.sleep(0.01)
    assert "resuming: 12/12 epochs of phase scratch done" in clone.run("dvc", "repro", TRAIN)
    assert md5s(clone) == md5s(origin)
    assert not list(clone.path.glob("models/scratch/.*"))


def test_a_dvc_that_is_killed_with_its_stage_resumes_where_it_was(origin: Clone, clone: Clone, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    for sign, number in ((": epoch 2 (", signal.SIGKILL), (": epoch 6 (", signal.SIGINT)):
        with log.open("wb") as file:
            dvc = subprocess.Popen(
                ["dvc", "repro", TRAIN], cwd=clone.path, stdout=file, stderr=file, start_new_session=True
            )
        while sign not in log.read_text():
            assert dvc.poll() is None, log.read_text()
            time.sleep(0.01)
        os.killpg(dvc.pid, number)
        dvc.wait()
    shown = clone.run("dvc", "repro", TRAIN)
    assert "Running stage 'chunked-resize'" not in shown
    assert epochs(shown)[0] >= 6
    assert md5s(clone) == md5s(origin)
