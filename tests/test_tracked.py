"""Tables that were edited in place, through the link into DVC's cache: by the real dvc, as root can do it."""

from pathlib import Path

import pytest

from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import reading
from tests.conftest import Clone


def edited(clone: Clone, path: Path) -> None:
    """Change one character of a file in place, whatever its permissions."""
    file = clone.path / path
    mode = file.stat().st_mode
    file.chmod(0o644)
    with file.open("r+") as content:
        content.write("I")
    file.chmod(mode)


@pytest.mark.slow
def test_the_stage_that_reads_an_edited_table_names_it_and_what_it_says_helps(clone: Clone) -> None:
    clone.run("dvc", "repro", "split")
    edited(clone, paths.ANNOTATIONS)
    clone.run("dvc", "repro", "split")  # restores the file from the cache, which is edited as well
    clone.set(split__seed=7)
    shown = clone.run("dvc", "repro", "split", ok=False)
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {paths.ANNOTATIONS}: edited after its stage wrote it")
    (cached,) = [word for word in line.split() if word.startswith("files/md5/")]
    (clone.path / paths.ANNOTATIONS).unlink()
    (clone.path / ".dvc/cache" / cached).unlink()
    clone.run("dvc", "repro", "split")


def test_a_stage_that_is_run_by_hand_reads_what_is_there(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = paths.MAIN_LOCK
    paths.SPLIT.parent.mkdir()
    paths.SPLIT.write_text("edited")
    lock.write_text("stages: {split: {outs: [{path: data/split.csv, md5: 00ab}]}}")
    with reading(paths.SPLIT):
        pass
    monkeypatch.setenv("DVC_STAGE", "train-scratch")
    with pytest.raises(UserError, match=r"md5 .*, dvc.lock says 00ab"), reading(paths.SPLIT):
        pass
