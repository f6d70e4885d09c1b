"""Outputs as the dvc.lock files know them, and those that were edited after their stage wrote them."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def recorded_md5(stage: dict[str, Any], kind: str, path: Path) -> str:
    """The md5 that a stage of a dvc.lock has of a path.

    Args:
        stage: its entry.
        kind: deps or outs.
        path: relative to the repository's root.

    Raises:
        KeyError: it has none.
    """
    for entry in stage[kind]:
        if entry["path"] == str(path):
            return str(entry["md5"])
    raise KeyError(str(path))


def _recorded(lock: Path, path: Path) -> Iterator[str]:
    for stage in parse_yaml(lock.read_bytes())["stages"].values():
        with suppress(KeyError):
            yield recorded_md5(stage, "outs", path)
