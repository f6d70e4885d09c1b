"""Files of a git revision, from git, DVC's cache or a remote. The workspace stays as it is."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.runtime.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo

WORKSPACE = "workspace"
# Returns the text of a file by its path from the repository's root; FileNotFoundError if there is none.
Reader = Callable[[Path], str]


@contextmanager
def repository() -> Iterator["Repo"]:
    """The repository of the current folder.

    Raises:
        UserError: it is not a repository of both git and DVC, or DVC can't read it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo()
    except (DvcException, SCMError) as error:
        raise UserError(f"no DVC repository here: {error}; run this in a clone of the project") from error
    try:
        with repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC can't read this repository: {error}") from error


def reader(repo: "Repo", name: str) -> Reader:
    """A function that reads files of a revision: a commit, branch, tag or experiment, or `workspace` for the files on disk.

    Raises:
        UserError: no such revision.
    """
    from dvc.scm import RevError, resolve_rev

    root = Path(repo.root_dir)
    if name == WORKSPACE:
        return lambda path: (root / path).read_text(encoding="utf-8")
    try:
        revision = resolve_rev(repo.scm, name) if name else ""
    except RevError:
        revision = ""
    if not revision or _git(root, "cat-file", "-e", f"{revision}^{{commit}}") is None:
        raise UserError(
            f"{name or 'an empty name'} is not a revision; expected a branch, tag, commit or experiment (git branch, "
            f"dvc exp list), or {WORKSPACE}"
        )
    return partial(_read, repo, revision)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, None if it fails."""
    ended = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, encoding="utf-8", check=False)
    return None if ended.returncode else ended.stdout


def _read(repo: "Repo", revision: str, path: Path) -> str:
    """The text of a file that git or DVC has at a revision."""
    if (text := _git(Path(repo.root_dir), "show", f"{revision}:./{path}")) is not None:
        return text
    with repo.switch(revision):
        found = [out.hash_info for out in repo.index.outs if out.fs_path.lstrip("/") == str(path)]
    if not found or not found[0] or found[0].isdir:
        raise FileNotFoundError(errno.ENOENT, "no stage of that revision writes it", str(path))
    # Not repo.dvcfs: that knows the remotes of the revision's own .dvc/config alone.
    if not (cache := repo.cache.local).exists(found[0].value):
        try:
            repo.cloud.pull(found)
        except Exception as error:  # each kind of remote has its own errors
            reason = f"not in DVC's cache, and no remote has it ({_first_sentence(error)})"
            raise FileNotFoundError(errno.ENOENT, reason, str(path)) from error
        if not cache.exists(found[0].value):
            raise FileNotFoundError(errno.ENOENT, "neither in DVC's cache nor in the remote", str(path))
    return Path(cache.oid_to_path(found[0].value)).read_text(encoding="utf-8")


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
