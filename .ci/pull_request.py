"""What a pull request changes: is dvc.lock up to date, are its metrics those that are obtained, and what do they mean.

    python .ci/pull_request.py TARGET REPORT

TARGET is a commit of the branch that it is for; REPORT is the Markdown file to write. Run it in a clean clone at the pull
request's commit. Exit code 1 where dvc.lock or the metrics are not what they should be; the report says why.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo

GOALS = ["evaluate", "report"]
EVALUATION = "metrics/evaluation.json"
METRICS = ("macro_f1", "weighted_f1", "accuracy")
# On another processor rounding differs, and the CNN from scratch with it (README, "The same bytes twice").
TOLERANCE = 0.15
CHECK = "params"  # writes the same whatever the parameters are: nothing runs because it has run
ABSENT = ("deleted", "not in cache")
REF = "refs/comparison/target"
# What goes wrong in dvc, git and their files, as opposed to here; the log has its words.
TROUBLE = (subprocess.CalledProcessError, DvcException, yaml.YAMLError, OSError, ValueError, KeyError, TypeError)


class Failed(Exception):
    """Why the pull request can't be merged as it is, in Markdown."""


def run(*command: str, folder: Path = Path()) -> str:
    """What a command prints. Its stderr goes where this program's goes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def stale() -> list[str]:
    """The stages of the chosen data and model that `dvc repro` would run, in order; absent outputs are no reason."""
    with Repo() as repo:
        status = repo.status(targets=GOALS, with_deps=True)
        chosen = {stage for goal in GOALS for stage, _ in repo.stage.collect_granular(goal, with_deps=True)}
        made = {out.fs_path: out.hash_info for stage in chosen for out in stage.outs}
        changed = {
            stage
            for stage in chosen
            if any(map(_matters, status.get(stage.addressing, [])))
            or any(made.get(dep.fs_path, dep.hash_info) != dep.hash_info for dep in stage.deps)
        }
        order = list(_order(chosen, made))
    found: list[Any] = []
    for stage in order:
        anew = {out.fs_path for other in found if other.addressing != CHECK for out in other.outs}
        if stage in changed or any(dep.fs_path in anew for dep in stage.deps):
            found.append(stage)
    return [stage.addressing for stage in found]


def _order(stages: set[Any], made: dict[str, Any]) -> Iterator[Any]:
    """Each stage after those whose outputs it needs."""
    done: set[str] = set()
    left = sorted(stages, key=lambda stage: str(stage.addressing))
    while left:
        stage = next(each for each in left if all(dep.fs_path in done or dep.fs_path not in made for dep in each.deps))
        left.remove(stage)
        done |= {out.fs_path for out in stage.outs}
        yield stage


def _matters(change: dict[str, Any] | str) -> bool:
    """Whether an entry of `dvc status` is more than a file that a fresh clone has not."""
    return change not in ABSENT if isinstance(change, str) else any(map(_matters, change.values()))


def check_lock(target: str) -> str:
    """Raises: Failed: `dvc repro` would run something."""
    if not (stages := stale()):
        return "dvc.lock is up to date with code and parameters."
    names = "\n".join(f"- `{name}`" for name in stages)
    with clone_of(target) as clone, chdir(clone):
        before = stale()
    also = f"\n\nThe target branch is not up to date either: there it would run {', '.join(before)}." if before else ""
    raise Failed(
        f"**dvc.lock is not up to date.** `dvc repro` would run\n\n{names}\n\nRun it, and commit dvc.lock, "
        f"data/dvc.lock, models/dvc.lock, metrics and plots.{also}"
    )


def check_metrics() -> str:
    """Reproduce, and compare with what is committed.

    Raises:
        Failed: the metrics are not those that are committed.
    """
    committed = json.loads(run("git", "show", f"HEAD:{EVALUATION}"))
    run("dvc", "repro", *GOALS)
    # Where the predictions have the bits of the lock, dvc would take the scores that are committed for made of them.
    run("dvc", "repro", "--force", "--single-item", *GOALS)
    obtained = json.loads(Path(EVALUATION).read_text(encoding="utf-8"))
    gaps = {name: abs(obtained[name] - committed[name]) for name in METRICS}
    pairs = "; ".join(f"{name} {committed[name]:.4f} committed, {obtained[name]:.4f} obtained" for name in METRICS)
    if obtained["model"] != committed["model"] or max(gaps.values()) > TOLERANCE:
        raise Failed(f"**The committed metrics are not those obtained** (tolerance {TOLERANCE}): {pairs}.")
    same = "the same" if not any(gaps.values()) else f"within {max(gaps.values()):.4f} (tolerance {TOLERANCE})"
    return f"The committed metrics are those obtained: {same}. {pairs}."


def data() -> str:
    """The parameter `data`."""
    return str(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["data"])


@contextmanager
def clone_of(target: str) -> Iterator[Path]:
    """A clone at that commit, which shares DVC's cache with this one."""
    cache = run("dvc", "cache", "dir").strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "-q", "--shared", "--no-checkout", ".", str(clone))
        run("git", "checkout", "-q", "--detach", target, folder=clone)
        run("dvc", "cache", "dir", "--local", str(Path(cache).resolve()), folder=clone)
        yield clone


@contextmanager
def reproduced(target: str) -> Iterator[str]:
    """A revision with the target branch's results as this machine obtains them.

    What has the bits of this machine can be compared: the outputs of the commit itself may be nowhere at hand.
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
            "Obtained",
            folder=clone,
        )
        run("git", "fetch", "-q", "--no-tags", str(clone), f"+HEAD:{REF}")
    try:
        yield REF
    finally:
        run("git", "update-ref", "-d", REF)


def comparison(target: str, *, here: bool) -> str:
    """`stages.compare` of the target branch and this one, as Markdown.

    Args:
        target: a commit.
        here: with the results as this machine obtains them, not with what DVC has of both commits.
    """
    compare = (sys.executable, "-m", "stages.compare", "--md")
    if not here:
        return run(*compare, target, "HEAD")
    with reproduced(target) as revision:
        return run(*compare, revision, "workspace").replace(revision, "the target branch")


def differences(target: str) -> str:
    """What is committed here against what is committed there: metrics and parameters."""
    parts = []
    for title, what in (("Metrics", "metrics"), ("Parameters", "params")):
        table = run("dvc", what, "diff", "--md", target, "HEAD").strip().replace(target, "target branch")
        parts.append(f"### {title}, as committed\n\n{table or 'No difference.'}")
    return "\n\n".join(parts)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python .ci/pull_request.py TARGET REPORT")
    target = run("git", "rev-parse", "--verify", f"{sys.argv[1]}^{{commit}}").strip()
    report = Path(sys.argv[2]).resolve()
    parts, failed = ["## Results of this pull request"], False

    def attempt(what: str, part: Callable[[], str]) -> bool:
        nonlocal failed
        try:
            parts.append(part())
            return True
        except Failed as why:
            parts.append(str(why))
        except TROUBLE as error:
            parts.append(f"**{what} failed** ({type(error).__name__}); the log says why.")
            print(f"{what}: {error}", file=sys.stderr)
        failed = True
        return False

    # The drawn sample alone is on every machine.
    sample = attempt("Reading params.yaml", lambda: f"data: `{data()}`") and data() == "data/raw/sample"
    good = attempt("Comparing dvc.lock with code and parameters", lambda: check_lock(target))
    if good and sample:
        good = attempt("Reproducing the results", check_metrics)
    elif good:
        parts.append(
            "Not reproduced, as that data is not here: nothing says that the committed metrics are those obtained."
        )
    attempt("Showing differences", lambda: differences(target))
    parts.append("### Against the target branch")
    attempt("Comparing with the target branch", lambda: comparison(target, here=good and sample))
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(report.read_text(encoding="utf-8"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
