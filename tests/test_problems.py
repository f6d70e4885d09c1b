"""What a stage says, as a process of its own, when its input or the disk is not as it should be."""

import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from stages import annotate, chunked_resize, split
from stages.common import layout
from stages.common.files import new_file, new_folder, write_csv
from stages.common.problem import Problem
from tests.conftest import ROOT, set_parameters

STAGES = [
    "annotate",
    "split",
    "chunked_resize",
    "features vgg16",
    "train scratch",
    "train vgg16",
    "infer scratch",
    "evaluate",
    "report",
]


def stage(command: str, folder: Path, most_bytes: str = "unlimited") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"ulimit -f {most_bytes}; exec {sys.executable} -m stages.{command}"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line


@pytest.mark.slow
@pytest.mark.parametrize("command", STAGES)
def test_a_stage_without_its_input_says_which_is_missing(workspace: Path, command: str) -> None:
    line = one_line(stage(command, workspace))
    assert "data" in line or "models" in line


@pytest.mark.parametrize("command", ["features lenet", "train lenet", "train", "infer lenet"])
def test_another_word_for_a_model_names_the_known_ones(workspace: Path, command: str) -> None:
    assert "vgg16,xception,mobilenetv2" in one_line(stage(command, workspace))


def test_without_parameters_it_says_where_to_run(tmp_path: Path) -> None:
    assert "params.yaml: No such file" in one_line(stage("params", tmp_path))


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("sample", "data/raw/sample"),
        ("annotate", "data/annotations.csv"),
        ("split", "data/split.csv"),
        ("chunked_resize", ".h5"),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_path_and_leaves_nothing(
    workspace: Path, drawn: Path, command: str, named: str
) -> None:
    shutil.copytree(drawn, workspace / "photos")
    set_parameters(workspace / "params.yaml", {"data": "photos"})
    if command in ("split", "chunked_resize"):
        write_csv(annotate.OUT, annotate.read(layout.annotation_file(drawn)))
    if command == "chunked_resize":
        split.main()
    before = set(workspace.rglob("*"))
    line = one_line(stage(command, workspace, most_bytes="1"))
    assert named in line
    assert "could not write" in line
    left = {path for path in set(workspace.rglob("*")) - before if path.is_file()}
    assert {path.name for path in left} == {f".{command.replace('_', '-')}.lock"}


def test_a_failed_write_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    for error, raised in ((OSError("full"), Problem), (KeyError("other"), KeyError)):
        with pytest.raises(raised, match="could not write .*a.txt: full|other"):
            _fail(new_file(path), error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "1").write_text("1")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]
    with pytest.raises(ValueError, match="broken"):
        _fail(new_folder(tmp_path / "a"), ValueError("broken"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "1"]


def _fail(half_done: AbstractContextManager[Path], error: Exception) -> None:
    with half_done as path:
        (path / "2" if path.is_dir() else path).write_text("half")
        raise error


def test_what_killed_processes_left_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".a.txt.{dead.pid}.tmp", f".a.txt.{dead.pid}.keras", ".a.txt.resume", ".a.txt.1.tmp", ".b.txt.2.tmp"):
        (tmp_path / name).touch()
    (tmp_path / f".a.txt.{dead.pid}.old.tmp").mkdir()
    with new_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", ".a.txt.resume", ".a.txt.1.tmp", ".b.txt.2.tmp"}


SWALLOWED = """
import os, signal, time
from stages.common import problem
problem.PATIENCE = 0.2
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIG{})
        time.sleep(0.01)
def main():
    Deaf()
    try:
        time.sleep(0.3)
    except BaseException:
        pass
    time.sleep(60)
problem.run(main)
"""


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_signal_that_python_or_a_library_ignores_is_said_again(name: str, code: int) -> None:
    command = [sys.executable, "-c", SWALLOWED.format(name)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == code
    assert result.stderr.strip() == f"stopped by SIG{name}: run again to go on"


def test_a_dead_worker_is_one_problem(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(path.name for path in (drawn / "images").iterdir())
    monkeypatch.setattr(chunked_resize, "resize_chunk", _die)
    with pytest.raises(Problem, match="a worker was killed, probably for lack of memory"):
        chunked_resize.resize(names, drawn / "images", 40, 32, tmp_path, 2)


def _die(*arguments: object) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_who_has_seen_enough_ends_it_quietly() -> None:
    code = "from stages.common import problem; problem.run(lambda: [print('x' * 1000) for _ in range(10_000)])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1
