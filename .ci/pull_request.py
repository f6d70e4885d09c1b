"""Check the results of a pull request: is dvc.lock up to date, are the metrics reproducible, and what do they change.

    python .ci/pull_request.py TARGET REPORT

TARGET is a commit of the target branch; REPORT is the Markdown file to write. Run it at the root of a clean clone, at
the pull request's commit. Exit code 1 if dvc.lock or the metrics are wrong, or if a part fails; the report says why.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from dvc.exceptions import DvcException

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import committed
from stale import GOALS, stale_stages

from stages.common.runtime import paths
from stages.common.runtime.parameters import Parameters, Pretrained
from stages.common.runtime.plain_yaml import parse_yaml

REF = "refs/comparison/target"
# Errors in dvc, git and the files of the pull request, not bugs of this script; the log has their messages.
EXPECTED_ERRORS = (
    subprocess.CalledProcessError,
    DvcException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)


class CheckError(Exception):
    """Why the pull request can't be merged as it is, in Markdown."""


def run(*command: str, folder: Path = Path()) -> str:
    """The stdout of a command. Its stderr is not captured.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def check_lock(target: str) -> str:
    """Say that dvc.lock is up to date.

    Raises:
        CheckError: `dvc repro` would run something.
    """
    if not (stages := stale_stages()):
        return "dvc.lock is up to date with code and parameters."
    names = "\n".join(f"- `{name}`" for name in stages)
    with clone_of(target) as clone, chdir(clone):
        before = stale_stages()
    also = f"\n\nThe target branch is not up to date either: it would run {', '.join(before)}." if before else ""
    raise CheckError(
        f"**dvc.lock is not up to date.** `dvc repro` would run\n\n{names}\n\nRun it, then commit dvc.lock, "
        f"data/dvc.lock, models/dvc.lock, metrics and plots.{also}"
    )


def check_metrics() -> str:
    """Reproduce the results, and compare them with the committed ones.

    Raises:
        CheckError: they differ.
    """
    model, section = read_parameters().model, read_parameters().chosen
    solved = isinstance(section, Pretrained) and section.solved
    run("dvc", "repro", *GOALS)
    # If the predictions have the hash that dvc.lock has, dvc trusts the committed scores: compute them again.
    run("dvc", "repro", "--force", "--single-item", *GOALS)
    wrong, exact = committed.check(
        lambda path: run("git", "show", f"HEAD:{path}"), lambda path: path.read_text(encoding="utf-8"), model, solved
    )
    if wrong:
        listed = "\n".join(f"- {each}" for each in wrong)
        raise CheckError(f"**The committed results are not reproduced:**\n\n{listed}")
    how = "exactly" if exact else f"within {committed.TOLERANCE}: this processor rounds differently"
    return (
        f"The committed results of {model} are reproduced {how}. Not compared: {', '.join(committed.TIME)} (time), the curves "
        f"of other models, and {paths.CROSS_VALIDATION}."
    )


def read_parameters() -> Parameters:
    """The content of params.yaml.

    Raises:
        OSError, ValueError: it can't be read, or is wrong.
    """
    # Not parameters.load(): that requires the data, and a data set of one's own is on no other machine.
    return Parameters.model_validate(parse_yaml(paths.PARAMETERS.read_bytes()))


@contextmanager
def clone_of(target: str) -> Iterator[Path]:
    """A clone at the commit `target` that shares DVC's cache with this one."""
    cache = run("dvc", "cache", "dir").strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "-q", "--shared", "--no-checkout", ".", str(clone))
        run("git", "checkout", "-q", "--detach", target, folder=clone)
        run("dvc", "cache", "dir", "--local", str(Path(cache).resolve()), folder=clone)
        yield clone


@contextmanager
def reproduced_revision(target: str) -> Iterator[str]:
    """A revision with the results of `target`, reproduced on this machine.

    It can be compared image by image; the predictions that belong to the commit itself may be nowhere available.
    """
    settings = (
        "user.name=comparison",
        "user.email=comparison@localhost",
        "commit.gpgsign=false",
        "core.hooksPath=/dev/null",
    )
    with clone_of(target) as clone:
        run("dvc", "repro", *GOALS, folder=clone)
        run("git", "add", "--all", folder=clone)
        run(
            "git",
            *[part for each in settings for part in ("-c", each)],
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "Reproduced",
            folder=clone,
        )
        run("git", "fetch", "-q", "--no-tags", str(clone), f"+HEAD:{REF}")
    try:
        yield REF
    finally:
        run("git", "update-ref", "-d", REF)


def comparison(target: str, *, reproduce: bool) -> str:
    """What `commands.compare` says about the target branch and this one, as Markdown.

    Args:
        target: a commit.
        reproduce: compare the results reproduced on this machine, not those that DVC has of both commits.
    """
    compare = (sys.executable, "-m", "commands.compare", "--md")
    if not reproduce:
        return run(*compare, target, "HEAD")
    with reproduced_revision(target) as revision:
        return run(*compare, revision, "workspace").replace(revision, "the target branch")


def differences(target: str) -> str:
    """The committed metrics and parameters against those of the target branch."""
    parts = []
    for title, what in (("Metrics", "metrics"), ("Parameters", "params")):
        table = run("dvc", what, "diff", "--md", target, "HEAD").strip().replace(target, "target branch")
        parts.append(f"### {title}, as committed\n\n{table or 'No difference.'}")
    return "\n\n".join(parts)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python .ci/pull_request.py TARGET REPORT")
    try:
        target = run("git", "rev-parse", "--verify", "--quiet", f"{sys.argv[1]}^{{commit}}").strip()
    except subprocess.CalledProcessError:
        sys.exit(f"error: {sys.argv[1]} is not a commit of this clone; a shallow one needs git fetch --unshallow")
    report = Path(sys.argv[2]).absolute()
    if (
        not report.parent.is_dir()
        or report.is_dir()
        or not os.access(report if report.exists() else report.parent, os.W_OK)
    ):
        sys.exit(f"error: {report} can't be written; expected the name of a file in a folder that exists")
    parts, failed = ["## Results of this pull request"], False

    def attempt(what: str, part: Callable[[], str]) -> bool:
        nonlocal failed
        try:
            parts.append(part())
            return True
        except CheckError as error:
            parts.append(str(error))
        except EXPECTED_ERRORS as error:
            parts.append(f"**{what} failed** ({type(error).__name__}); the log says why.")
            print(f"{what}: {error}", file=sys.stderr)
        failed = True
        return False

    # Every machine can make the synthetic sample, but no other data.
    readable = attempt("Reading params.yaml", lambda: f"data: `{read_parameters().data}`")
    sample = readable and read_parameters().uses_sample
    good = attempt("Comparing dvc.lock with code and parameters", lambda: check_lock(target))
    if good and sample:
        good = attempt("Reproducing the results", check_metrics)
    elif good:
        parts.append(
            "Not reproduced, because these data are not available here: the committed metrics are not checked."
        )
    attempt("Showing differences", lambda: differences(target))
    parts.append("### Against the target branch")
    attempt("Comparing with the target branch", lambda: comparison(target, reproduce=good and sample))
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(report.read_text(encoding="utf-8"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
