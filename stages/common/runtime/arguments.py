"""The command line of stages that are told which model they are for."""

import argparse
import functools
from collections.abc import Sequence


def model_argument(stage: str, models: Sequence[str]) -> str:
    """The model named on the command line of `python -m stages.STAGE MODEL`.

    Raises:
        SystemExit: it is missing or none of `models`; argparse prints the usage and the choices.
    """
    in_one_line = functools.partial(argparse.HelpFormatter, width=200)
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}", formatter_class=in_one_line)
    parser.add_argument("model", choices=models)
    return str(parser.parse_args().model)
