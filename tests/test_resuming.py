"""What unfinished work is keyed by, when it is kept and when it goes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common import resuming
from stages.common.problem import Problem
from stages.common.resuming import publish, resumable, state
from tests.conftest import ROOT


def interrupted(out: Path, *depends: object) -> Path:
    """Leave one finished piece for `out`, as a run that was stopped."""
    with pytest.raises(Problem), resumable(out, *depends) as done:  # noqa: PT012
        (done / "piece").write_text("made")
        raise Problem("stopped")
    return done


def test_what_is_done_is_found_again_and_goes_when_the_output_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(out, "a", 1)
    with resumable(out, "a", 1) as done:
        assert (done / "piece").read_text() == "made"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depends", [("a", 2), ("b", 1), ("a", 1, None), ("a", "1"), (["a", 1],)])
def test_what_depended_on_something_else_is_removed(tmp_path: Path, depends: tuple[object, ...]) -> None:
    other = interrupted(tmp_path / "out", "a", 1)
    with pytest.raises(Problem), resumable(tmp_path / "out", *depends) as done:  # noqa: PT012
        assert list(done.iterdir()) == []
        raise Problem("stopped")
    assert not other.exists()


def test_without_the_process_that_started_the_stage_the_pieces_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "STARTER", None)
    with resumable(tmp_path / "out") as done:
        (done / "piece").touch()
    assert (done / "piece").exists()


def test_a_changed_replaced_or_missing_file_is_another_state(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 1_000_000_000))
    first = state([path])
    assert state([path]) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 2_000_000_000))
    changed = state([path])
    path.write_bytes(b"three")
    os.utime(path, ns=(0, 2_000_000_000))
    longer = state([path])
    (tmp_path / "2.jpg").write_bytes(b"other")
    os.utime(tmp_path / "2.jpg", ns=(0, 2_000_000_000))
    (tmp_path / "2.jpg").replace(path)
    replaced = state([path])
    path.chmod(0o400)
    readable = state([path])
    path.unlink()
    states = [first, changed, longer, replaced, readable, state([path]), state([])]
    assert all(one != other for number, one in enumerate(states) for other in states[:number])


def test_a_line_of_code_is_part_of_the_key(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))

    def key(module: str) -> str:
        code = f"import stages.{module}; from stages.common import resuming; print(resuming.code())"
        environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    before = [key("chunked_resize"), key("split")]
    assert key("chunked_resize") == before[0]
    with (tmp_path / "stages/common/decoding.py").open("a") as file:
        file.write("# another line\n")
    assert key("chunked_resize") != before[0]
    assert key("split") == before[1]


def test_pieces_are_published_under_their_names_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.h5").write_text("1")
    for name in ("linked", "copied"):
        (tmp_path / name).mkdir()
        publish([tmp_path / "1.h5"], tmp_path / name)
        assert (tmp_path / name / "1.h5").read_text() == (tmp_path / "1.h5").read_text() == "1"
        monkeypatch.setattr(os, "link", no_links)


def no_links(*paths: Path) -> None:
    raise OSError("a file system without links")
