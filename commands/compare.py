"""Compare two results, or two groups of seeds: python -m commands.compare [A[,A2...]] [B[,B2...]] [--md] [--all].

Out-of-fold predictions of all labelled images are compared if every revision has them, else those of the test part.
"""

import argparse

from stages.common.comparison.differences import compare
from stages.common.comparison.experiments import read_experiment, refuse_other_differences
from stages.common.comparison.results import Result, mean_of, read_out_of_fold, read_result
from stages.common.comparison.text import to_text
from stages.common.runtime import errors, paths
from stages.common.runtime.revisions import WORKSPACE, Reader, reader, repository

Group = list[tuple[str, Reader]]


def _out_of_fold(groups: list[Group]) -> tuple[list[Result], list[str]]:
    """The out-of-fold results of each group, or the reasons why these can't be compared."""
    found = [[(name, read_out_of_fold(name, read)) for name, read in group] for group in groups]
    reasons = [f"{name}: {each}" for group in found for name, each in group if isinstance(each, str)]
    if reasons:
        return [], reasons
    a, b = (mean_of([each for _, each in group if isinstance(each, Result)]) for group in found)
    if different := [key for key, value in a.folds.items() if b.folds.get(key) != value]:
        return [], [f"A and B differ in {', '.join(different)}"]
    return [a, b], []


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m commands.compare", description="Compare two results, or two groups that differ in seed alone."
    )
    for name, default, shown in (("A", "HEAD", "HEAD"), ("B", WORKSPACE, "the workspace")):
        parser.add_argument(
            name.lower(),
            nargs="?",
            default=default,
            metavar=name,
            help=f"git revision or experiment, or several separated by commas (default: {shown})",
        )
    parser.add_argument("--md", action="store_true", help="Markdown, for a pull request")
    parser.add_argument("--all", action="store_true", help="list every image on which they disagree")
    arguments = parser.parse_args()
    with repository() as repo:
        groups = [[(name, reader(repo, name)) for name in names.split(",")] for names in (arguments.a, arguments.b)]
        for group in groups:
            if len(group) > 1:
                refuse_other_differences([read_experiment(name, read) for name, read in group])
        results, reasons = _out_of_fold(groups)
        if reasons:
            results = [mean_of([read_result(name, read) for name, read in group]) for group in groups]
    comparison = compare(*results, every=arguments.all, out_of_fold=not reasons)
    if 0 < len(reasons) < sum(map(len, groups)):  # some have them
        comparison.parts.append(
            f"Not by out-of-fold predictions: {'; '.join(reasons)}. dvc repro {paths.PIPELINES[-1]}:cross-validate makes them."
        )
    print(to_text(comparison, markdown=arguments.md))


if __name__ == "__main__":
    errors.run(main)
