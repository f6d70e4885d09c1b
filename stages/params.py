"""Check params.yaml: the first stage, so that a wrong value stops everything before any work.

It writes a file whose content never changes. The first stages of the pipeline depend on that file: they run after the
check, and a changed parameter of another stage does not run them again.
"""

from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.files import write_text
from stages.common.runtime.lock import lock


@lock("params")
def main() -> None:
    parameters.load()
    write_text(paths.PARAMETERS_CHECKED, "params.yaml is valid\n")


if __name__ == "__main__":
    errors.run(main)
