"""Try a trained model in the browser: python -m commands.demo [--model NAME|FILE] [--host HOST] [--port PORT] [--no-browser]."""

import argparse
import importlib.util

from stages.common.runtime import errors
from stages.common.runtime.errors import UserError

PACKAGES = ("starlette", "uvicorn")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m commands.demo", description="Try a trained model in the browser.")
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a model trained here, or a .keras file (default: the model in params.yaml); the page offers all others, too",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the interface to serve (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=_port, default=7860, help="0 is any that is free (default: 7860)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    arguments = parser.parse_args()
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{' and '.join(missing)} not installed; pip install -r requirements-demo.txt")
    from stages.common.demo.server import serve

    serve(arguments.model, arguments.host, arguments.port, not arguments.no_browser)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    errors.run(main)
