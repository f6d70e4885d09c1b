"""Check params.yaml: the first stage, so that a wrong value stops everything before any work.

It writes a file whose content never changes. The first stages of the pipeline depend on that file: they run after the
check, and a changed parameter of another stage does not run them again.
"""

from stages.common.backbones.catalog import find
from stages.common.backbones.network import FIXED
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_text
from stages.common.runtime.lock import lock


@lock("params")
def main() -> None:
    values = parameters.load()
    for model in parameters.PRETRAINED:
        section = getattr(values, model)
        network = find(section.name) if isinstance(section, parameters.Backbone) else FIXED[model]
        if section.pixels and section.pixels < network.min_input:
            raise UserError(
                f"{paths.PARAMETERS}: {model}.input_size is {section.pixels}; it should be auto, or {network.min_input} or "
                f"more for {network.name}"
            )
    write_text(paths.PARAMETERS_CHECKED, "params.yaml is valid\n")


if __name__ == "__main__":
    errors.run(main)
