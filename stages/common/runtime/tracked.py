"""Outputs as the dvc.lock files know them, and those that were edited after their stage wrote them."""

import hashlib
import os
from pathlib import Path

from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.plain_yaml import parse_yaml


def md5(path: Path) -> str:
    """The digest of a file, as DVC computes it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def refuse_edited(path: Path) -> None:
    """Raise a `UserError` if dvc runs this process and `path` is not what its stage wrote, as a dvc.lock says.

    DVC links outputs from its cache, read-only. Root can still edit such a file in place; that edits the cache, too, and
    DVC then restores the edited file.
    """
    if "DVC_STAGE" not in os.environ or not path.is_file():
        return
    expected = {digest for lock in paths.LOCKS if lock.exists() for digest in _recorded(lock, path)}
    found = md5(path)
    if expected and found not in expected:
        known = min(expected)
        raise UserError(
            f"{path}: edited after its stage wrote it (md5 {found}, dvc.lock says {known}), in DVC's cache as well; delete it "
            f"and files/md5/{known[:2]}/{known[2:]} in the folder that `dvc cache dir` names, then run dvc repro"
        )


def _recorded(lock: Path, path: Path) -> list[str]:
    stages = parse_yaml(lock.read_bytes())["stages"].values()
    return [str(out.get("md5")) for stage in stages for out in stage.get("outs", []) if out["path"] == str(path)]
