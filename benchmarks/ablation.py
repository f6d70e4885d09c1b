"""What each choice of the recipe is worth: overrides of params.yaml, cross-validated on several sets of photographs.

    python -m benchmarks.ablation SET=FOLDER [SET=FOLDER ...] [--without TEXT]

Each row and set is an experiment, `dvc exp run ... models/dvc.yaml:cross-validate`, in a clone: what has run once is restored
from DVC's cache. The table is benchmarks/results/ablation.md.
"""

import argparse
import subprocess
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.__main__ import RESULTS, hardware
from benchmarks.pipeline import fresh_clone
from stages.common.comparison.results import Result, read_out_of_fold
from stages.common.evaluation import bootstrap
from stages.common.runtime import errors, paths
from stages.common.runtime.files import write_text
from stages.common.runtime.revisions import WORKSPACE, reader, repository

STAGE = "models/dvc.yaml:cross-validate"
LITE, MOBILE = "backbone.name=efficientnet_lite0", "backbone.name=mobilenetv2"
# What is compared with the row of the same backbone named first.
CHANGES = {
    "seed 2, which a solved head does not use": ["seed=2"],
    "l2 10": ["backbone.l2=10"],
    "l2 1000": ["backbone.l2=1000"],
    "imbalance none": ["backbone.imbalance=none"],
    "no refit": ["backbone.refit=false"],
    "input 288": ["backbone.input_size=288", "resize.size=288"],
}
ROWS: dict[str, list[str]] = {
    "EfficientNet-Lite0": [LITE],
    **{f"EfficientNet-Lite0, {name}": [LITE, *change] for name, change in CHANGES.items()},
    "EfficientNet-Lite0, trained by epochs: head conv": [LITE, "backbone.head=conv"],
    "EfficientNet-Lite0, trained by epochs: fine-tuning": [LITE, "backbone.fine_tune_epochs=3"],
    "EfficientNet-Lite1, input 240": ["backbone.name=efficientnet_lite1", "resize.size=240"],
    "EfficientNet-Lite2, input 260": ["backbone.name=efficientnet_lite2", "resize.size=260"],
    "MobileNetV2 0.35": [MOBILE],
    **{f"MobileNetV2 0.35, {name}": [MOBILE, *change] for name, change in CHANGES.items()},
}


class Set(NamedTuple):
    """A set of photographs, and its clone of the project."""

    name: str
    folder: Path
    clone: Path


def cross_validated(each: Set, overrides: list[str]) -> Result:
    """The out-of-fold results of an experiment, which stay in the clone's workspace."""
    settings = [f"data={each.folder}", "target=activity", *overrides]
    with chdir(each.clone):
        subprocess.run(["git", "checkout", "-q", str(paths.PARAMETERS)], check=True)  # without the last row's changes
        command = ["dvc", "exp", "run", "-q", *(f"--set-param={value}" for value in settings), STAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with repository() as repo:
            found = read_out_of_fold(WORKSPACE, reader(repo, WORKSPACE))
    if isinstance(found, str):
        raise errors.UserError(f"{each.name}, {', '.join(overrides)}: {found}")
    return found


def mean_difference(found: list[bootstrap.Difference]) -> tuple[float, float, float]:
    """The mean over independent sets and its 95 % interval, from theirs (Zou and Donner, Statistics in Medicine 2008)."""
    mean = float(np.mean([each.difference for each in found]))
    down, up = (
        float(np.sqrt(sum((each.difference - end) ** 2 for each, end in zip(found, ends, strict=True))) / len(found))
        for ends in ([each.low for each in found], [each.high for each in found])
    )
    return mean, mean - down, mean + up


def measure(sets: list[Set], rows: dict[str, list[str]]) -> pd.DataFrame:
    """One row each: macro F1 of each set, the differences to the row of the same backbone, and their mean over the sets."""
    found: dict[str, list[Result]] = {}
    table: list[dict[str, Any]] = []
    for name, overrides in rows.items():
        found[name] = [cross_validated(each, overrides) for each in sets]
        cells: dict[str, Any] = {"recipe": name, "": " ".join(f"-S {value}" for value in overrides)}
        base = found[name.split(",")[0]] if name.split(",")[0] in found else found[next(iter(found))]
        pairs = zip(base, found[name], strict=True)
        changes = [bootstrap.differences(old.tables, new.tables)["macro_f1"] for old, new in pairs]
        for each, result, change in zip(sets, found[name], changes, strict=True):
            cells[each.name] = "{:.3f} ({:.2f} to {:.2f})".format(*bootstrap.intervals(result.tables)["macro_f1"])
            cells[f"change, {each.name}"] = "{:+.3f} ({:+.3f} to {:+.3f})".format(*change)
        mean = mean_difference(changes)
        cells["mean change"] = "{:+.3f} ({:+.3f} to {:+.3f})".format(*mean)
        cells["verdict"] = "better" if mean[1] > 0 else "worse" if mean[2] < 0 else ""
        table.append(cells)
        print(cells, flush=True)
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description="What is each choice worth?")
    parser.add_argument("sets", nargs="+", metavar="SET=FOLDER")
    parser.add_argument("--without", default=None, help="skip the rows whose name contains this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        sets = []
        for number, (name, _, folder) in enumerate(each.partition("=") for each in arguments.sets):
            if not folder or not Path(folder).is_dir():
                raise errors.UserError(f"{arguments.sets[number]!r} is not SET=FOLDER with an existing folder")
            sets.append(Set(name, Path(folder).resolve(), fresh_clone(Path(work) / f"clone{number}")))
        rows = {name: change for name, change in ROWS.items() if not arguments.without or arguments.without not in name}
        table = measure(sets, rows).to_markdown(index=False)
        write_text(RESULTS / "ablation.md", f"# Ablation\n\n{hardware()}\n\n{table}\n")


if __name__ == "__main__":
    errors.run(main)
