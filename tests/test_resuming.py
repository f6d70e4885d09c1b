"""What finished pieces depend on, when they are kept and when they are removed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common.runtime.errors import UserError
from stages.common.runtime.resuming import fingerprint, publish, resumable, unfinished
from tests.conftest import ROOT


def interrupted(out: Path, *depends: object) -> Path:
    """Leave one finished piece for `out`, as a run that was stopped."""
    with pytest.raises(UserError), resumable(out, *depends) as done:  # noqa: PT012
        (done / "piece").write_text("made")
        raise UserError("stopped")
    return done


def test_finished_pieces_are_found_again_and_removed_when_the_output_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(out, "a", 1)
    with resumable(out, "a", 1) as done:
        assert (done / "piece").read_text() == "made"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depends", [("a", 2), ("b", 1), ("a", 1, None), ("a", "1"), (["a", 1],)])
def test_pieces_that_depended_on_something_else_are_removed(tmp_path: Path, depends: tuple[object, ...]) -> None:
    other = interrupted(tmp_path / "out", "a", 1)
    with pytest.raises(UserError), resumable(tmp_path / "out", *depends) as done:  # noqa: PT012
        assert list(done.iterdir()) == []
        raise UserError("stopped")
    assert not other.exists()


# A stage. Its arguments: the process that started the shell, and whether to work until that process has died.
STAGE = """
import os, sys, time, psutil
from pathlib import Path
from stages.common.runtime.resuming import resumable
with resumable(Path("out")) as done:
    (done / "piece").touch()
    while sys.argv[2] == "orphaned" and psutil.Process(os.getppid()).ppid() == int(sys.argv[1]):
        time.sleep(0.01)
"""
# Starts the stage in a shell, as dvc does, and waits for it or ends before it.
STARTER = """
import os, subprocess, sys
from pathlib import Path
stage = [sys.executable, "-c", os.environ["STAGE"], str(os.getpid()), sys.argv[1]]
shell = subprocess.Popen(["sh", "-c", '"$@"; exit', "sh", *stage])
if sys.argv[1] == "waited for":
    sys.exit(shell.wait())
while not list(Path().glob(".out.resume/*/piece")):
    assert shell.poll() is None
"""


@pytest.mark.parametrize(
    ("starter", "dvc_stage", "end", "kept"),
    [
        ("dvc", "train", "waited for", False),
        ("dvc", "train", "orphaned", True),
        ("other", "train", "orphaned", True),
        ("other", None, "orphaned", False),
        ("other", None, "waited for", False),
    ],
)
def test_pieces_stay_if_dvc_started_the_stage_and_has_died(
    tmp_path: Path, starter: str, dvc_stage: str | None, end: str, kept: bool
) -> None:
    (tmp_path / starter).write_text(STARTER)
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    environment |= {"PYTHONPATH": str(ROOT), "STAGE": STAGE} | ({"DVC_STAGE": dvc_stage} if dvc_stage else {})
    command = [sys.executable, str(tmp_path / starter), end]
    # Waits for orphans, too: they have the pipes open.
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.glob(".out.resume/*/*")] == (["piece"] if kept else [])
    assert (tmp_path / ".out.resume").exists() == kept


def test_a_folder_for_pieces_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with (
        pytest.raises(UserError, match="could not write .*/data/.out.resume/.*: Not a directory; free disk space or"),
        resumable(tmp_path / "data" / "out"),
    ):
        pass


def _check(piece: Path) -> None:
    if piece.read_text() != "whole":
        raise ValueError("another\ntext")


def test_finished_pieces_are_counted_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [tmp_path / f"{number}.h5" for number in range(3)]
    assert unfinished(iter(pieces), "resize", "chunks", _check) == pieces
    assert capsys.readouterr().out == ""
    pieces[1].write_text("whole")
    assert unfinished(iter(pieces), "resize", "chunks", _check) == [pieces[0], pieces[2]]
    assert capsys.readouterr().out == "resize: resuming: 1/3 chunks done\n"
    for piece in pieces:
        piece.write_text("whole")
    assert unfinished(iter(pieces), "resize", "chunks", _check) == []
    assert capsys.readouterr().out == "resize: resuming: 3/3 chunks done\n"


def test_a_damaged_piece_is_removed_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [tmp_path / f"{number}.h5" for number in range(3)]
    for piece, text in zip(pieces, ("whole", "half", "whole"), strict=True):
        piece.write_text(text)
    assert unfinished(iter(pieces), "resize", "chunks", _check) == [pieces[1]]
    assert [piece.exists() for piece in pieces] == [True, False, True]
    discarded, resuming = capsys.readouterr().out.splitlines()
    assert discarded == "resize: discarded the damaged 1.h5 (another text)"
    assert resuming == "resize: resuming: 2/3 chunks done"


def test_a_changed_replaced_or_missing_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 1_000_000_000))
    first = fingerprint([path])
    assert fingerprint([path]) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 2_000_000_000))
    changed = fingerprint([path])
    path.write_bytes(b"three")
    os.utime(path, ns=(0, 2_000_000_000))
    longer = fingerprint([path])
    (tmp_path / "2.jpg").write_bytes(b"other")
    os.utime(tmp_path / "2.jpg", ns=(0, 2_000_000_000))
    (tmp_path / "2.jpg").replace(path)
    replaced = fingerprint([path])
    path.chmod(0o400)
    readable = fingerprint([path])
    path.unlink()
    found = [first, changed, longer, replaced, readable, fingerprint([path]), fingerprint([])]
    assert all(one != other for number, one in enumerate(found) for other in found[:number])


def test_a_line_of_code_is_part_of_the_key(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))

    def key(module: str) -> str:
        code = f"import stages.{module}; from stages.common.runtime import resuming; print(resuming.code())"
        environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    before = [key("chunked_resize"), key("split")]
    assert key("chunked_resize") == before[0]
    with (tmp_path / "stages/common/images/decoding.py").open("a") as file:
        file.write("# another line\n")
    assert key("chunked_resize") != before[0]
    assert key("split") == before[1]


@pytest.mark.parametrize("stage", ["train", "cross_validate"])
def test_the_recipe_is_loaded_before_the_key_is_made(stage: str) -> None:
    """Else a changed head would resume from what the old one has learnt."""
    lines = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8").splitlines()
    (recipe,) = [number for number, line in enumerate(lines) if " = recipe_of" in line]
    (key,) = [number for number, line in enumerate(lines) if "code()" in line and "with resumable" in line]
    assert recipe < key


def test_pieces_are_published_under_their_names_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.h5").write_text("1")
    for name in ("linked", "copied"):
        (tmp_path / name).mkdir()
        publish([tmp_path / "1.h5"], tmp_path / name)
        assert (tmp_path / name / "1.h5").read_text() == (tmp_path / "1.h5").read_text() == "1"
        monkeypatch.setattr(os, "link", no_links)


def no_links(*paths: Path) -> None:
    raise OSError("a file system without links")
