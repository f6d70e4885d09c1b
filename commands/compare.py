"""Compare two results, or two groups of seeds: python -m commands.compare [A[,A2...]] [B[,B2...]] [--md] [--all].

Out-of-fold predictions of all labelled images are compared if every revision has them, else those of the test part.
"""

import argparse

from stages.common.comparison.differences import compare
from stages.common.comparison.experiments import read_experiment, refuse_other_differences
from stages.common.comparison.results import Result, mean_of, read_out_of_fold, read_result
from stages.common.comparison.text import to_text
from stages.common.runtime import errors
from stages.common.runtime.revisions import WORKSPACE, Reader, reader, repository


def _read(group: dict[str, Reader]) -> tuple[list[Result], dict[str, str]]:
    """The out-of-fold results of a group, and for each revision that has none the reason."""
    if len(group) > 1:
        refuse_other_differences([read_experiment(name, read) for name, read in group.items()])
    found = {name: read_out_of_fold(name, read) for name, read in group.items()}
    missing = {name: each for name, each in found.items() if isinstance(each, str)}
    return [each for each in found.values() if isinstance(each, Result)], missing


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
        groups = [{name: reader(repo, name) for name in names.split(",")} for names in (arguments.a, arguments.b)]
        found = [_read(group) for group in groups]
        out_of_fold = not any(missing for _, missing in found)
        if out_of_fold:
            a, b = (mean_of(results) for results, _ in found)
        else:
            a, b = (mean_of([read_result(name, read) for name, read in group.items()]) for group in groups)
    print(to_text(compare(a, b, every=arguments.all, out_of_fold=out_of_fold), markdown=arguments.md))
    if not out_of_fold and any(results for results, _ in found):
        reasons = "; ".join(f"{name}: {reason}" for _, missing in found for name, reason in missing.items())
        print(f"\nNot by out-of-fold predictions ({reasons}): dvc repro models/dvc.yaml:cross-validate makes them.")


if __name__ == "__main__":
    errors.run(main)
