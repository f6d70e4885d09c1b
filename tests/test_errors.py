"""The errors that a user sees: a missing or damaged input, a full disk, a signal, a dead worker, and a bug."""

import errno
import fcntl
import importlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, chdir
from pathlib import Path

import pytest

from stages import annotate, chunked_resize, split
from stages.common.dataset import chunks
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import new_file, new_folder
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import MODELS, PRETRAINED
from tests.conftest import ROOT, TINY, set_parameters
from tests.test_dvc_yaml import STAGES

# The stages that read something, each after those that it depends on.
ORDER = [
    "sample",
    "annotate",
    "split",
    "chunked-resize",
    "audit",
    "train-scratch",
    "infer-scratch",
    "evaluate",
    "explain",
    "report",
    "features-backbone",
    "train-backbone",
    "infer-backbone",
]
# A pretrained model reads the images only for fine-tuning. The check of params.yaml has an output only for dvc.
UNREAD = {
    ("audit", "data/raw/sample"),  # headers of images alone
    ("train-backbone", "data/resized"),
    ("infer-backbone", "data/resized"),
    *((stage, "data/params.checked") for stage in ORDER),
}


def inputs(stage: str) -> list[str]:
    """What a stage reads, by dvc.yaml."""
    deps = [dep.replace("${data}", "data/raw/sample").replace("${model}", "scratch") for dep in STAGES[stage]["deps"]]
    return [dep for dep in deps if not dep.startswith("stages/") and (stage, dep) not in UNREAD]


INPUTS = [(stage, path) for stage in ORDER for path in inputs(stage)]
INPUTS += [("train-backbone", "data/features/backbone/backbone.keras")]


def execute(
    command: str, folder: Path, max_size: str = "unlimited", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a stage as a process of its own in `folder`; `max_size`: of the files that it writes, in KiB."""
    return subprocess.run(
        ["bash", "-c", f"ulimit -f {max_size}; exec {sys.executable} -m stages.{command}"],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "KERAS_BACKEND": "tensorflow",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line


def run_code(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` as the main function of a stage."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    code = f"from stages.common.runtime import errors\ndef main():\n{lines}errors.run(main)\n"
    inherited = {key: value for key, value in os.environ.items() if key != "DEBUG"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("annotate", "data/raw/sample"),
        ("chunked_resize", "data/images.txt"),
        ("train scratch", "data/split.csv"),
        ("evaluate", "models/scratch/predictions.csv"),
    ],
)
def test_a_stage_without_its_input_says_which_is_missing(workspace: Path, command: str, named: str) -> None:
    line = one_line(execute(command, workspace))
    assert named in line
    assert "dvc repro" in line or command == "annotate"


def call(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a stage in this process and folder."""
    module, *arguments = STAGES[stage]["cmd"].split()[2:]
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    chunks._open.cache_clear()
    importlib.import_module(module).main()


@pytest.fixture(scope="module")
def all_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages have run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(ROOT / "params.yaml", folder)
    set_parameters(folder / "params.yaml", TINY)
    with chdir(folder), pytest.MonkeyPatch.context() as monkeypatch:
        for stage in ORDER:
            call(stage, monkeypatch)
    return folder


@pytest.fixture
def copy(all_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current one."""
    folder = shutil.copytree(all_stages, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "path"), INPUTS)
def test_each_missing_input_is_a_user_error_that_names_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch, stage: str, path: str
) -> None:
    (copy / path).rename(copy / "elsewhere")
    with pytest.raises(UserError) as raised:
        call(stage, monkeypatch)
    assert path in str(raised.value)
    assert "dvc repro" in str(raised.value) or path == "data/raw/sample"


# Bad images are counted, not refused. A list of no images is valid text.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "path", "content"),
    [
        (stage, path, content)
        for stage, path in INPUTS
        for content in (b"", b"\xff\xfe\x00")
        if (stage, path) != ("chunked-resize", "data/raw/sample") and (path, content) != ("data/images.txt", b"")
    ],
)
def test_each_damaged_input_is_a_user_error_that_names_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch, stage: str, path: str, content: bytes
) -> None:
    damaged = copy / path
    if damaged.is_dir():
        damaged = min(file for file in damaged.iterdir() if file.is_file())
    damaged.write_bytes(content)
    with pytest.raises(UserError) as raised:
        call(stage, monkeypatch)
    assert path in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("features scratch", "argument model: invalid choice: 'scratch'"),
        ("train", "the following arguments are required: model"),
        ("infer scratch vgg16", "unrecognized arguments: vgg16"),
    ],
)
def test_a_wrong_command_line_shows_the_usage_and_the_known_models(workspace: Path, command: str, message: str) -> None:
    result = execute(command, workspace)
    assert result.returncode == 2
    usage, error = result.stderr.splitlines()
    module, models = f"python -m stages.{command.split()[0]}", PRETRAINED if command.startswith("features") else MODELS
    assert usage == f"usage: {module} [-h] {{{','.join(models)}}}"
    assert error.startswith(f"{module}: error: {message}")
    assert result.stdout == ""


def test_without_parameters_it_says_where_to_run(tmp_path: Path) -> None:
    assert "params.yaml: No such file or directory; run from the repository's root" in one_line(
        execute("params", tmp_path)
    )


@pytest.mark.parametrize("value", [None, "", "0"])
def test_an_error_of_the_user_has_no_traceback(tmp_path: Path, value: str | None) -> None:
    result = execute("split", tmp_path, **({} if value is None else {"DEBUG": value}))
    assert result.stderr.splitlines() == [one_line(result)]


def test_debug_shows_the_traceback_before_the_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    result = execute("split", tmp_path, DEBUG="1")
    assert result.returncode == 1
    *before, line = result.stderr.splitlines()
    assert line.startswith("error: could not read data/annotations.csv: No such file or directory; ")
    assert before[0] == "Traceback (most recent call last):"
    assert any(text.startswith("FileNotFoundError: ") for text in before)
    assert before[-1].startswith("stages.common.runtime.errors.UserError: could not read data/annotations.csv")
    assert any("stages/split.py" in text for text in before)


@pytest.mark.parametrize(
    ("bug", "shown"),
    [
        ("open('absent.csv')", "FileNotFoundError: [Errno 2] No such file or directory: 'absent.csv'"),
        ("open('stages')", "IsADirectoryError: [Errno 21] Is a directory: 'stages'"),
        ("raise OSError('truncated')", "OSError: truncated"),
        ("{}['key']", "KeyError: 'key'"),
    ],
)
def test_a_bug_keeps_its_traceback(bug: str, shown: str) -> None:
    result = run_code(bug)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.splitlines()[-1] == shown
    assert "error: " not in result.stderr


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (
            "import os\nos.write(os.open('/dev/full', os.O_WRONLY), b'x')",
            "the system reports 'No space left on device'",
        ),
        ("open('/proc/self/mem', 'rb').read(1)", "the system reports 'Input/output error'"),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))\n"
            "files = [open('/dev/null') for _ in range(9)]",
            "/dev/null: the system reports 'Too many open files'",
        ),
        ("bytearray(1 << 60)", "out of memory"),
    ],
)
def test_a_fault_of_the_system_is_one_line(fault: str, shown: str) -> None:
    result = run_code(fault)
    assert result.stderr.splitlines() == [one_line(result)]
    assert one_line(result).startswith(f"error: {shown}; ")
    debugged = run_code(fault, DEBUG="1").stderr.splitlines()
    assert debugged[0] == "Traceback (most recent call last):"
    assert debugged[-1] == one_line(result)


def test_an_error_of_many_lines_is_one_line() -> None:
    assert one_line(run_code("raise errors.UserError('one\\n  two')")) == "error: one two"


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
        annotate.main()
    if command == "chunked_resize":
        split.main()
    before = set(workspace.rglob("*"))
    line = one_line(execute(command, workspace, max_size="1"))
    assert named in line
    assert "could not write" in line
    left = {path for path in set(workspace.rglob("*")) - before if path.is_file()}
    assert {path.name for path in left} == {f".{command.replace('_', '-')}.lock"}


def test_a_failed_write_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    for error, raised in ((OSError("full"), UserError), (KeyError("other"), KeyError)):
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


def _fail(unfinished: AbstractContextManager[Path], error: Exception) -> None:
    with unfinished as path:
        (path / "2" if path.is_dir() else path).write_text("half")
        raise error


def test_files_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = platform.node()
    stay = {".a.txt.resume", f".a.txt.1@{host}.tmp", f".b.txt.2@{host}.tmp", f".a.txt.{dead.pid}@other.tmp"}
    for name in (f".a.txt.{dead.pid}@{host}.tmp", f".a.txt.{dead.pid}@{host}.keras", *stay):
        (tmp_path / name).touch()
    (tmp_path / f".a.txt.{dead.pid}@{host}.old.tmp").mkdir()
    with new_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", *stay}


SWALLOWED = """
import time
from stages.common.runtime import errors
def main():
    try:
        print("working", flush=True)
        time.sleep(60)
    except BaseException:
        print("swallowed", flush=True)
    time.sleep(60)
errors.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_the_process_at_once_although_the_first_was_swallowed(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SWALLOWED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        for said in ("working\n", "swallowed\n"):
            assert process.stdout.readline() == said
            process.send_signal(number)
        assert process.wait(timeout=20) == -number
        assert process.stderr.read().strip() == f"stopped by {number.name}: run again to resume"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_after_cleanup_with_one_line(tmp_path: Path, number: signal.Signals) -> None:
    result = run_code(
        f"import os\nfrom pathlib import Path\nfrom stages.common.runtime.files import new_file\n"
        f"with new_file(Path({str(tmp_path / 'a.txt')!r})) as path:\n"
        f"    path.write_text('half')\n"
        f"    os.kill(os.getpid(), {number.value})\n"
        f"    path.write_text('whole')\n"
    )
    assert result.returncode == 128 + number
    assert result.stderr.strip() == f"stopped by {number.name}: run again to resume"
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_told_while_stderr_is_turned_away() -> None:
    code = "import os\nos.dup2(os.open(os.devnull, os.O_WRONLY), 2)\nos.kill(os.getpid(), 15)"
    assert run_code(code).stderr.strip() == "stopped by SIGTERM: run again to resume"


def test_a_stage_runs_without_stderr(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from stages.common.runtime import errors; errors.run(lambda: print(1))"
    command = f'{sys.executable} -c "$0" 2>&-'
    ended = subprocess.run(["bash", "-c", command, code], stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout == "1\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(number: int, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with (
        pytest.raises(UserError, match=r"data/.split.lock: this file system has no locks \(.*\); mount it"),
        lock("split"),
    ):
        pass


def test_a_dead_worker_is_a_user_error(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(path.name for path in (drawn / "images").iterdir())
    monkeypatch.setattr(chunked_resize, "resize_chunk", _die)
    with pytest.raises(UserError, match="a worker was killed, probably for lack of memory"):
        chunked_resize.resize({name: drawn / "images" / name for name in names}, 40, 32, tmp_path, 2)


def _die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_that_closes_early_causes_no_error() -> None:
    code = "from stages.common.runtime import errors; errors.run(lambda: [print('x' * 1000) for _ in range(10_000)])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.parametrize(("backend", "other"), [("tensorflow", "jax"), ("jax", "tensorflow")])
def test_keras_starts_without_packages_and_garbage_collection_that_it_does_not_need(
    tmp_path: Path, backend: str, other: str
) -> None:
    pytest.importorskip("jax")
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib/pyplot.py").touch()
    ended = run_code(
        "import gc, sys\nfrom stages.common.runtime.backend import keras\n"
        # Each of them asks whether TensorFlow is there.
        "keras.utils.set_random_seed(1)\nkeras.saving.serialize_keras_object(keras.layers.Dense(1))\n"
        f"assert not {{'{other}', 'matplotlib', 'sklearn'}} & sys.modules.keys()\n"
        "assert gc.get_freeze_count() > 10_000\n"
        "assert gc.isenabled()\n"
        "import logging\nassert not logging.getLogger('tensorflow').isEnabledFor(logging.WARNING)\n"
        f"import {other}, matplotlib.pyplot, sklearn.linear_model",  # not for good
        KERAS_BACKEND=backend,
        PYTHONPATH=str(tmp_path),
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "theano"])
def test_a_backend_that_can_not_train_is_one_line(workspace: Path, backend: str) -> None:
    result = execute("train scratch", workspace, KERAS_BACKEND=backend)
    line = one_line(result)
    assert f"KERAS_BACKEND is '{backend}'" in line
    assert "expected tensorflow or jax" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "shown"),
    [("unlimited", ""), ("0", "error: Keras can't be imported: .*; free disk space, set TMPDIR .*\n")],
)
def test_importing_keras_prints_nothing_or_one_line_about_the_disk(limit: str, shown: str) -> None:
    command = f"ulimit -f {limit}; exec {sys.executable} -c 'import stages.common.runtime.backend' 2>&1 | cat"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(shown, result.stdout)


def test_names_that_a_terminal_can_not_show_are_escaped() -> None:
    code = "from stages.common.runtime import errors; errors.run(lambda: print('\\u00fc \\u65e5'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert shown.stdout.decode("ascii") == "\\xfc \\u65e5\n"


def test_an_error_does_not_control_the_terminal() -> None:
    result = run_code("raise errors.UserError('a\\x1b[2Jb \\u202e c')")
    assert result.stderr == "error: a\ufffd[2Jb \ufffd c\n"


def test_worker_processes_that_can_not_start_are_one_line_that_says_why(workspace: Path, drawn: Path) -> None:
    unshare = ["unshare", "-m", "sh", "-c"]
    if subprocess.run([*unshare, "mount -t tmpfs -o ro none /dev/shm"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a read-only /dev/shm")
    set_parameters(workspace / "params.yaml", {"data": str(drawn)})
    command = f"mount -t tmpfs -o ro none /dev/shm; exec {sys.executable} -m stages.annotate"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*unshare, command], cwd=workspace, env=environment, capture_output=True, text=True, check=False
    )
    assert one_line(result) == ("error: worker processes can't start (Read-only file system); make /dev/shm writable")
