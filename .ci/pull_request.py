"""What a pull request changes: is dvc.lock up to date, are its metrics those that are obtained, and what do they mean.

    python .ci/pull_request.py TARGET REPORT

TARGET is a commit of the branch that it is for; REPORT is the Markdown file to write. Run it in a clean clone at the pull
request's commit. Exit code 1 where dvc.lock or the metrics are not what they should be; the report says why.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo

GOALS = ["evaluate", "report"]
EVALUATION = "metrics/evaluation.json"
METRICS = ("macro_f1", "weighted_f1", "accuracy")
# On another processor rounding differs, and the CNN from scratch with it (README, "The same bytes twice").
TOLERANCE = 0.15
CHECK = "params"  # writes the same whatever the parameters are: nothing runs because it has run
ABSENT = ("deleted", "not in cache")
TAG = "target-branch"


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


def check_lock() -> str:
    """Raises: Failed: `dvc repro` would run something."""
    if stages := stale():
        names = "\n".join(f"- `{name}`" for name in stages)
        raise Failed(
            f"**dvc.lock is not up to date.** `dvc repro` would run\n\n{names}\n\nRun it, and commit dvc.lock, "
            "data/dvc.lock, models/dvc.lock, metrics and plots."
        )
    return "dvc.lock is up to date with code and parameters."


def check_metrics() -> str:
    """Reproduce, and compare with what is committed.

    Raises:
        Failed: the metrics are not those that are committed.
    """
    committed = json.loads(run("git", "show", f"HEAD:{EVALUATION}"))
    run("dvc", "repro", *GOALS)
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
def reproduced(target: str) -> Iterator[str]:
    """A revision with the target branch's results as this machine obtains them.

    What has the bits of this machine can be compared: the outputs of the commit itself may be nowhere at hand.
    """
    cache = run("dvc", "cache", "dir").strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "-q", "--shared", "--no-checkout", ".", str(clone))
        run("git", "checkout", "-q", "--detach", target, folder=clone)
        run("dvc", "cache", "dir", "--local", str(Path(cache).resolve()), folder=clone)
        run("dvc", "repro", *GOALS, folder=clone)
        identity = ("-c", "user.name=comparison", "-c", "user.email=comparison@localhost")
        run("git", *identity, "commit", "-q", "--allow-empty", "-am", "Obtained", folder=clone)
        run("git", "fetch", "-q", "--no-tags", str(clone), f"+HEAD:refs/tags/{TAG}")
        try:
            yield TAG
        finally:
            run("git", "tag", "-d", TAG)


def comparison(target: str, *, here: bool) -> str:
    """`stages.compare` of the target branch and this one, as Markdown.

    Args:
        target: a commit.
        here: with the results as this machine obtains them, not with what DVC has of both commits.
    """
    compare = (sys.executable, "-m", "stages.compare", "--md")
    try:
        if here:
            with reproduced(target) as revision:
                return run(*compare, revision, "workspace")
        return run(*compare, target, "HEAD")
    except subprocess.CalledProcessError as error:
        return f"No comparison: `{' '.join(map(str, error.cmd[:4]))}` failed at the target branch; see the log."


def differences(target: str) -> str:
    """What is committed here against what is committed there: metrics and parameters."""
    parts = []
    for title, what in (("Metrics", "metrics"), ("Parameters", "params")):
        table = run("dvc", what, "diff", "--md", target, "HEAD").strip()
        parts.append(f"### {title}, as committed\n\n{table or 'No difference.'}")
    return "\n\n".join(parts)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python .ci/pull_request.py TARGET REPORT")
    target, report = (
        run("git", "rev-parse", "--verify", f"{sys.argv[1]}^{{commit}}").strip(),
        Path(sys.argv[2]).resolve(),
    )
    parts, failed = ["## Results of this pull request"], False
    # The drawn sample alone is on every machine.
    sample = data() == "data/raw/sample"
    try:
        parts.append(check_lock())
        parts.append(check_metrics() if sample else f"Not reproduced: data is {data()}, which is not here.")
    except Failed as why:
        parts.append(str(why))
        failed = True
    parts.append(differences(target))
    parts.append(f"### Against the target branch\n\n{comparison(target, here=sample and not failed)}")
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(report.read_text(encoding="utf-8"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
