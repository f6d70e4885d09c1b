"""What git and DVC hold of a revision, from the cache or a remote; the workspace is left as it is."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.problem import Problem

if TYPE_CHECKING:
    from dvc.repo import Repo

WORKSPACE = "workspace"
# Gives the text of a file by its path from the top of the repository; FileNotFoundError where there is none.
Reader = Callable[[str], str]


@contextmanager
def repository() -> Iterator["Repo"]:
    """The repository that this runs in, from any of its folders.

    Raises:
        Problem: there is none of both git and DVC, or DVC can't read what is asked of it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo()
    except (DvcException, SCMError) as error:
        raise Problem(f"no DVC repository here: {error}; run this in a clone of the project") from None
    try:
        with repo:
            yield repo
    except DvcException as error:
        raise Problem(f"DVC can't read this repository: {error}") from None


def reader(repo: "Repo", name: str) -> Reader:
    """What reads files of a revision: a commit, branch, tag or experiment, or `workspace` for the files as they lie there.

    Raises:
        Problem: no such revision.
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
        raise Problem(
            f"{name or 'an empty name'} is no revision; expected a branch, tag, commit or experiment (git branch, "
            f"dvc exp list), or {WORKSPACE}"
        )
    return partial(_read, repo, revision)


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, None if it refuses."""
    ended = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, encoding="utf-8", check=False)
    return None if ended.returncode else ended.stdout


def _read(repo: "Repo", revision: str, path: str) -> str:
    """The text of a file that git or DVC holds at a revision."""
    if (text := _git(Path(repo.root_dir), "show", f"{revision}:./{path}")) is not None:
        return text
    with repo.switch(revision):
        found = [out.hash_info for out in repo.index.outs if out.fs_path.lstrip("/") == path]
    if not found or not found[0] or found[0].isdir:
        raise FileNotFoundError(errno.ENOENT, "that revision makes no such file", path)
    # Not by repo.dvcfs: what that knows of remotes is what the revision's own .dvc/config says.
    if not (cache := repo.cache.local).exists(found[0].value):
        try:
            repo.cloud.pull(found)
        except Exception as error:  # each kind of remote has its own errors
            raise FileNotFoundError(
                errno.ENOENT, f"not in DVC's cache, and no remote has it ({_line(error)})", path
            ) from error
        if not cache.exists(found[0].value):
            raise FileNotFoundError(errno.ENOENT, "neither in DVC's cache nor in the remote", path)
    return Path(cache.oid_to_path(found[0].value)).read_text(encoding="utf-8")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
