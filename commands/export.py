"""Write a trained model for other programs, or a folder for a hub of models.

python -m commands.export [--model NAME|FILE] --format onnx|litert|saved_model|hub OUT
"""

import argparse
from pathlib import Path

from stages.common.export import card, formats, writing
from stages.common.prediction.classifier import load_classifier
from stages.common.runtime import errors
from stages.common.runtime.errors import printable

HUB = "hub"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m commands.export", description="Write a trained model for other programs, or a folder for a hub."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the file (onnx, litert) or folder (saved_model, hub)")
    parser.add_argument("--format", required=True, choices=[*formats.FORMATS, HUB])
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a model trained here, or a .keras file (default: the model in params.yaml)",
    )
    arguments = parser.parse_args()
    if arguments.format == HUB:
        writing.check_place(arguments.out, "")
        line = card.write(load_classifier(arguments.model), arguments.out)
    else:
        formats.check(arguments.format)
        writing.check_place(arguments.out, formats.FORMATS[arguments.format].suffix)
        line = writing.export(load_classifier(arguments.model), arguments.format, arguments.out)
    print("\n".join(map(printable, line.splitlines())))


if __name__ == "__main__":
    errors.run(main)
