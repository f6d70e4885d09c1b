"""Mean and range over experiments that differ only in their seeds: python -m commands.seeds [EXPERIMENT...] [--md]."""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import mean
from typing import Any

from tabulate import tabulate

from stages.common.comparison.experiments import Experiment, read_experiment
from stages.common.comparison.results import refuse_stale_scores
from stages.common.runtime import errors, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.revisions import Reader, reader, repository

SHOWN = {
    "macro_f1": ("macro F1", ".3f"),
    "weighted_f1": ("weighted F1", ".3f"),
    "accuracy": ("accuracy", ".3f"),
    "seconds": ("training seconds", ".1f"),
}


def table(experiments: Iterable[Experiment]) -> tuple[list[str], list[list[str]]]:
    """One row a group of experiments with the same parameters, code and data except the seeds; each seed counts once.

    Returns:
        Names of the columns, and the rows: what distinguishes the group, its number of seeds, and mean and range of each
        figure; the best mean of the first figure comes first.
    """
    groups: dict[str, dict[tuple[Any, ...], Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(json.dumps(experiment.rest, sort_keys=True), {}).setdefault(experiment.seeds, experiment)
    keys = [json.loads(key) for key in groups]
    # Among the groups that have it: other models do not have a model's own parameters.
    differing = [
        name
        for name in dict.fromkeys(name for key in keys for name in key)
        if len({json.dumps(key[name]) for key in keys if name in key}) > 1
    ]
    rows = []
    for key, members in zip(keys, groups.values(), strict=True):
        values = {name: [member.figures[name] for member in members.values()] for name in SHOWN}
        what = ", ".join(f"{name}={key[name]}" for name in differing if name in key) or f"model={key['model']}"
        cells = [
            f"{mean(found):{SHOWN[name][1]}} ({min(found):{SHOWN[name][1]}} to {max(found):{SHOWN[name][1]}})"
            for name, found in values.items()
        ]
        rows.append((mean(values["macro_f1"]), [what, str(len(members)), *cells]))
    rows.sort(key=lambda row: -row[0])
    return ["experiments", "seeds", *(text for text, _ in SHOWN.values())], [cells for _, cells in rows]


def repeated(experiments: Iterable[Experiment]) -> Iterator[tuple[str, str]]:
    """Each experiment that does not count, and the one that counts in its place: it has the same seeds and all else."""
    first: dict[str, str] = {}
    for experiment in experiments:
        key = json.dumps([experiment.rest, experiment.seeds], sort_keys=True)
        if first.setdefault(key, experiment.name) != experiment.name:
            yield experiment.name, first[key]


def read_experiments(names: list[str]) -> list[Experiment]:
    """The experiments of these names; without names, all that were run from the current commit.

    Raises:
        UserError: no repository, no such experiment, none at all, or one without results of its own model.
    """
    with repository() as repo:
        names = names or [each[0] for found in repo.experiments.ls().values() for each in found]
        if not names:
            raise UserError(
                "no experiments of this commit; make some: dvc exp run --queue -S 'seed=1,2,3' && dvc queue start"
            )
        return [_experiment(name, reader(repo, name)) for name in names]


def _experiment(name: str, read: Reader) -> Experiment:
    experiment = read_experiment(name, read)
    refuse_stale_scores(name, read)
    try:
        evaluation, training = (json.loads(read(path)) for path in (paths.EVALUATION, paths.TRAINING))
        return replace(experiment, figures={key: float((evaluation | training)[key]) for key in SHOWN})
    except FileNotFoundError as error:
        raise UserError(f"{name} has no {error.filename}; expected an experiment of this project") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: its metrics are not as dvc repro writes them: {error!r}") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m commands.seeds", description="Mean and range over experiments that differ only in their seeds."
    )
    parser.add_argument(
        "names", nargs="*", metavar="EXPERIMENT", help="(default: all that were run from the current commit)"
    )
    parser.add_argument("--md", action="store_true", help="Markdown")
    arguments = parser.parse_args()
    experiments = read_experiments(arguments.names)
    head, rows = table(experiments)
    print(tabulate(rows, head, tablefmt="github" if arguments.md else "simple", disable_numparse=True))
    for name, other in repeated(experiments):
        print(f"skipped: {name}: the same seeds, parameters, code and data as {other}")


if __name__ == "__main__":
    errors.run(main)
