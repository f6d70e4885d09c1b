"""Every claim about speed and memory, measured: tables with date, commit and hardware in benchmarks/results.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks PHOTOGRAPHS [--parts NAME ...]

PHOTOGRAPHS is a data set (docs/data.md), whose photographs have activities. Each part measures the project and what it is
compared with in one run; all parts take three quarters of an hour on two cores. benchmarks.gpu measures a GPU.
"""

import argparse
import datetime
import importlib
import platform
import subprocess
import tempfile
from pathlib import Path

from stages.common.runtime import errors
from stages.common.runtime.files import write_text
from stages.common.runtime.workers import available_cores

PARTS = {
    "resizing": "Resizing",
    "annotations": "Reading the annotations, splitting",
    "heads": "Features once, and the sweep",
    "feeding": "The input pipeline",
    "growth": "How time and memory grow",
    "cluster": "On a Dask cluster of one machine",
    "audit": "What the audit finds",
    "pipeline": "What dvc adds, and where the first minute goes",
}
RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """Date, commit, processor and versions, in one line."""
    commit = _shown("git", "rev-parse", "--short", "HEAD")
    if _shown("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results"):
        commit += " with changes"
    cores = f"{available_cores()} cores of {_processor()}"
    return f"{datetime.date.today()}, commit {commit}, {cores}, Python {platform.python_version()}"


def _shown(*command: str) -> str:
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS", help="a data set")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.parts:
        part = importlib.import_module(f"benchmarks.{name}")
        with tempfile.TemporaryDirectory() as work:
            table = part.measure(arguments.photographs.resolve(), Path(work))
        shown = table.astype(object).where(table.notna(), None)
        markdown = shown.to_markdown(index=False, floatfmt=".4g", missingval="")
        text = f"# {PARTS[name]}\n\n{hardware()}\n\n{markdown}\n\n{part.NOTES.strip()}\n"
        write_text(RESULTS / f"{name}.md", text)
        print(text)


if __name__ == "__main__":
    errors.run(main)
