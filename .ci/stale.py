"""Which stages `dvc repro` would run in a clone without data. For pull_request.py."""

from collections.abc import Iterator
from typing import Any

from dvc.repo import Repo

GOALS = ["evaluate", "report"]
CHECK_STAGE = "params"  # its output never changes, so no other stage runs because this one has run
ABSENT = ("deleted", "not in cache")


def stale_stages() -> list[str]:
    """The stages of the chosen data and model that `dvc repro` would run, in order. Absent outputs are not a reason."""
    with Repo() as repo:
        status = repo.status(targets=GOALS, with_deps=True)
        chosen = {stage for goal in GOALS for stage, _ in repo.stage.collect_granular(goal, with_deps=True)}
        outputs = {out.fs_path: out.hash_info for stage in chosen for out in stage.outs}
        changed = {
            stage
            for stage in chosen
            if any(map(_matters, status.get(stage.addressing, [])))
            or any(outputs.get(dep.fs_path, dep.hash_info) != dep.hash_info for dep in stage.deps)
        }
        order = list(_order(chosen, set(outputs)))
    found: list[Any] = []
    for stage in order:
        made_again = {out.fs_path for other in found if other.addressing != CHECK_STAGE for out in other.outs}
        if stage in changed or any(dep.fs_path in made_again for dep in stage.deps):
            found.append(stage)
    return [stage.addressing for stage in found]


def _order(stages: set[Any], outputs: set[str]) -> Iterator[Any]:
    """Each stage after the stages whose outputs it needs; `outputs` are the paths of all outputs."""
    done: set[str] = set()
    left = sorted(stages, key=lambda stage: str(stage.addressing))
    while left:
        stage = next(
            each for each in left if all(dep.fs_path in done or dep.fs_path not in outputs for dep in each.deps)
        )
        left.remove(stage)
        done |= {out.fs_path for out in stage.outs}
        yield stage


def _matters(change: dict[str, Any] | str) -> bool:
    """Whether an entry of `dvc status` is more than a file that a fresh clone does not have."""
    return change not in ABSENT if isinstance(change, str) else any(map(_matters, change.values()))
