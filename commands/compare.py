"""Compare two results: python -m commands.compare [A] [B] [--md] [--all]."""

import argparse

from stages.common.comparison.differences import compare
from stages.common.comparison.results import read_result
from stages.common.comparison.text import to_text
from stages.common.runtime import errors
from stages.common.runtime.revisions import WORKSPACE, reader, repository


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m commands.compare", description="Compare two results.")
    parser.add_argument("a", nargs="?", default="HEAD", metavar="A", help="git revision or experiment (default: HEAD)")
    parser.add_argument(
        "b", nargs="?", default=WORKSPACE, metavar="B", help="git revision or experiment (default: the workspace)"
    )
    parser.add_argument("--md", action="store_true", help="Markdown, for a pull request")
    parser.add_argument("--all", action="store_true", help="list every image on which they disagree")
    arguments = parser.parse_args()
    with repository() as repo:
        a, b = (read_result(name, reader(repo, name)) for name in (arguments.a, arguments.b))
    print(to_text(compare(a, b, every=arguments.all), markdown=arguments.md))


if __name__ == "__main__":
    errors.run(main)
