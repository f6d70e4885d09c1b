"""Check params.yaml: the first stage, so that a wrong value stops everything before any work is done.

It writes a file that never changes. The stages at the start of the pipeline depend on that file: they run after the
check, and a changed parameter that is not theirs does not run them again.
"""

from pathlib import Path

from stages.common import parameters, problem
from stages.common.files import lock, new_file

OUT = Path("data/params.checked")


@lock("params")
def main() -> None:
    parameters.load()
    with new_file(OUT) as temporary:
        temporary.write_text("params.yaml is valid\n", encoding="utf-8")


if __name__ == "__main__":
    problem.run(main)
