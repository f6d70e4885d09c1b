"""Mean and range over experiments that differ in their seeds alone: what one run is worth."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import yaml
from tabulate import tabulate

from stages.common import problem
from stages.common.parameters import MODELS, flat
from stages.common.problem import Problem
from stages.common.revisions import Reader, reader, repository

SEEDS = ("seed", "split.seed")
SHOWN = {
    "macro_f1": ("macro F1", ".3f"),
    "weighted_f1": ("weighted F1", ".3f"),
    "accuracy": ("accuracy", ".3f"),
    "seconds": ("training seconds", ".1f"),
}
FILES = ("params.yaml", "metrics/evaluation.json", "metrics/training.json")


@dataclass(frozen=True)
class Experiment:
    """Its name, its parameters by dotted keys, and its figures."""

    name: str
    parameters: dict[str, Any]
    figures: dict[str, float]


def table(experiments: Iterable[Experiment]) -> tuple[list[str], list[list[str]]]:
    """One row a group of experiments whose parameters are the same but for the seeds; runs of the same seeds count once.

    Returns:
        Names of the columns, and the rows: what tells the group from the others, its number of seeds, and mean and range
        of each figure, by falling mean of the first.
    """
    groups: dict[str, dict[str, Experiment]] = {}
    for experiment in experiments:
        rest = {key: value for key, value in _used(experiment.parameters).items() if key not in SEEDS}
        seeds = [experiment.parameters.get(key) for key in SEEDS]
        groups.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(json.dumps(seeds), experiment)
    keys = [json.loads(key) for key in groups]
    # Of those that have it: a model's own parameters are not the others'.
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


def _used(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those that matter: not the sections of models that were not chosen."""
    others = set(MODELS) - {parameters.get("model")}
    return {key: value for key, value in parameters.items() if key.split(".")[0] not in others}


def read(names: list[str]) -> list[Experiment]:
    """The experiments of these names; without any, all that were run from the current commit.

    Raises:
        Problem: no repository, no such experiment, none at all, or one without results.
    """
    with repository() as repo:
        names = names or [each[0] for found in repo.experiments.ls().values() for each in found]
        if not names:
            raise Problem(
                "no experiments of this commit; make some: dvc exp run --queue -S 'seed=1,2,3' && dvc queue start"
            )
        return [_experiment(name, reader(repo, name)) for name in names]


def _experiment(name: str, read: Reader) -> Experiment:
    try:
        parameters, evaluation, training = (
            flat(yaml.safe_load(read(FILES[0]))),
            *(json.loads(read(file)) for file in FILES[1:]),
        )
        return Experiment(name, parameters, {key: float((evaluation | training)[key]) for key in SHOWN})
    except FileNotFoundError as error:
        raise Problem(f"{name} has no {error.filename}; expected an experiment of this project") from None
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise Problem(f"{name}: its parameters or metrics are not as dvc repro writes them: {error!r}") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.seeds", description="Mean and range over experiments that differ in their seeds alone."
    )
    parser.add_argument(
        "names", nargs="*", metavar="EXPERIMENT", help="(default: all that were run from the current commit)"
    )
    parser.add_argument("--md", action="store_true", help="Markdown")
    arguments = parser.parse_args()
    head, rows = table(read(arguments.names))
    print(tabulate(rows, head, tablefmt="github" if arguments.md else "simple", disable_numparse=True))


if __name__ == "__main__":
    problem.run(main)
