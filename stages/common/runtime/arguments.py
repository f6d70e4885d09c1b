"""The command line of stages that are told which model they are for."""

import argparse
from collections.abc import Sequence


def model_argument(stage: str, models: Sequence[str]) -> str:
    """The model named on the command line of `python -m stages.STAGE MODEL`.

    Raises:
        SystemExit: it is missing or none of `models`; argparse prints the usage and the choices.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}")
    parser.add_argument("model", choices=models)
    return str(parser.parse_args().model)
