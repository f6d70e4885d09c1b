"""What images without labels are worth: scores with few labels, with and without learning from all images before.

    python -m benchmarks.label_efficiency SET=FOLDER [SET=FOLDER ...]
    python -m benchmarks.label_efficiency SET=FOLDER --extra FOLDER

Each set is split once, with 40 % of its labelled images as test part. For each of three seeds an encoder learns from all
other images without labels, and 1, 2, 5, 10 or all train images of each label keep their label. The stages run in this
process: what `dvc exp run` does, without starting TensorFlow 200 times. The tables are label_efficiency.md and
label_efficiency_extra.md in benchmarks/results, the picture is docs/unlabelled.svg.
"""

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd

from benchmarks.__main__ import RESULTS, hardware
from stages import annotate, chunked_resize, infer, pretrain, sample, split, train
from stages.common.dataset import chunks
from stages.common.evaluation import bootstrap
from stages.common.evaluation.predictions import read_predictions
from stages.common.images import layout
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.files import read_json, write_text
from tests.conftest import ROOT, set_parameters

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE = ROOT / "docs/unlabelled.svg"
SEEDS = (1, 2, 3)
# Labels of each label's train images, and the epochs: with few images an epoch has few steps.
Budgets = dict[int | str, int]
BUDGETS: Budgets = {1: 100, 2: 100, 5: 60, 10: 30, "all": 30}
SHARES = {"split.test": 0.4, "split.validation": 0.05}
RANDOM = "linear probe of random weights"
Models = dict[str, tuple[str, dict[str, Any]]]
ROWS: Models = {
    RANDOM: ("selfsupervised", {"selfsupervised.probe": True}),
    "linear probe of the encoder": ("selfsupervised", {"selfsupervised.probe": True}),
    "scratch": ("scratch", {}),
    "selfsupervised": ("selfsupervised", {"selfsupervised.probe": False}),
}


LEARNED = {row: ROWS[row] for row in ("linear probe of the encoder", "selfsupervised")}
EXTRA_BUDGETS = {budget: BUDGETS[budget] for budget in (5, "all")}


class Set(NamedTuple):
    """A data set, and a folder of further photographs to learn from without labels."""

    name: str
    folder: str
    extra: str = str(paths.EXTRA)


def run(stage: Any, *arguments: str) -> None:
    """A stage in this process, in the current folder."""
    sys.argv = ["stage", *arguments]
    chunks._open.cache_clear()  # files that stages have replaced
    keras.utils.clear_session()
    stage.main()


def measure(each: Set, models: Models, budgets: Budgets, epochs: int | None = None) -> pd.DataFrame:
    """One row for each seed, budget and model: seconds, and the file of predictions."""
    set_parameters(paths.PARAMETERS, {"data": each.folder, "pretrain.extra": each.extra, **SHARES})
    if parameters.load().uses_sample:
        run(sample)
    run(annotate)
    run(split)
    run(chunked_resize)
    run(chunked_resize, "unlabelled")
    epochs, rows = epochs or parameters.load().pretrain.epochs, list[dict[str, Any]]()
    pretraining = 0.0
    for seed in SEEDS:
        for row, (model, changes) in models.items():
            set_parameters(
                paths.PARAMETERS, {"seed": seed, **changes, "pretrain.epochs": 0 if row == RANDOM else epochs}
            )
            if row.startswith("linear probe"):  # the last row has the encoder of the one before
                start = time.perf_counter()
                run(pretrain)
                pretraining = time.perf_counter() - start
            for budget, few in budgets.items():
                set_parameters(paths.PARAMETERS, {"split.labels_per_class": budget, f"{model}.epochs": few})
                run(split)
                start = time.perf_counter()
                run(train, model)
                seconds = time.perf_counter() - start
                run(infer, model)
                kept = Path(f"{each.name}-{row}-{budget}-{seed}.csv")
                shutil.copy(paths.predictions(model), kept)
                rows.append({"row": row, "budget": budget, "file": kept.resolve(), "seconds": seconds})
                rows[-1]["pretraining"] = 0.0 if model == "scratch" else pretraining
    return pd.DataFrame(rows)


def summarise(each: Set, runs: pd.DataFrame) -> pd.DataFrame:
    """Macro F1 of each model and budget over the seeds, and the difference of selfsupervised and scratch."""
    table, tables = [], {}
    for (row, budget), group in runs.groupby(["row", "budget"], sort=False):
        tables[row, budget] = [read_predictions(path) for path in group["file"]]
        score = bootstrap.intervals(tables[row, budget])["macro_f1"]
        change, baseline = "", tables.get(("scratch", budget))
        if row == "selfsupervised" and baseline:
            found = bootstrap.differences(baseline, tables[row, budget])["macro_f1"]
            change = "{:+.3f} ({:+.3f} to {:+.3f})".format(*found)
        table.append(
            {
                "set": each.name,
                "model": row,
                "labels": budget,
                "macro F1": score.value,
                "low": score[1],
                "high": score[2],
                "against scratch": change,
                "seconds": round(group["seconds"].mean()),
                "seconds without labels": round(group["pretraining"].mean()),
            }
        )
    return pd.DataFrame(table)


def picture(table: pd.DataFrame) -> None:
    """Macro F1 over the number of labels, a line a model and a panel a set; the bars are 95 % intervals."""
    names = list(dict.fromkeys(table["set"]))
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        of_set = table[table["set"] == name]
        for number, (row, lines) in enumerate(of_set.groupby("model", sort=False)):
            score = lines["macro F1"]
            places = np.arange(len(lines)) + 0.06 * (number - 1.5)
            bars = np.array([score - lines["low"], lines["high"] - score])
            panel.errorbar(places, score, bars, marker="o", markersize=4, linewidth=1.2, capsize=2, label=row)
        panel.set_title(name)
        panel.set_xticks(range(len(BUDGETS)), [str(budget) for budget in BUDGETS])
        panel.set_xlabel("labelled photographs of each label")
        panel.set_ylim(bottom=0)
    panels[0][0].set_ylabel("macro F1 on the test part")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE)


def with_extra(each: Set, extra: str) -> pd.DataFrame:
    """What further photographs bring to the learned models: as many steps without labels, over more photographs."""
    base = measure(each, LEARNED, EXTRA_BUDGETS)
    images = read_json(paths.pretrain_timing("selfsupervised"))["images"]
    count = images + sum(1 for _ in layout.image_files(Path(extra)))
    epochs = round(parameters.load().pretrain.epochs * images / count)
    more = measure(Set(f"{each.name} and others", each.folder, extra), LEARNED, EXTRA_BUDGETS, epochs)
    rows = []
    for (row, budget), group in more.groupby(["row", "budget"], sort=False):
        same = base[(base["row"] == row) & (base["budget"] == budget)]
        without, found = ([read_predictions(path) for path in part["file"]] for part in (same, group))
        scores = [bootstrap.intervals(tables)["macro_f1"].value for tables in (without, found)]
        change = "{:+.3f} ({:+.3f} to {:+.3f})".format(*bootstrap.differences(without, found)["macro_f1"])
        rows.append(
            {"model": row, "labels": budget, f"{images} images": scores[0], f"{count} images": scores[1], "": change}
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.label_efficiency", description="What are few labels worth?"
    )
    parser.add_argument("sets", nargs="+", metavar="SET=FOLDER")
    parser.add_argument(
        "--extra", metavar="FOLDER", help="instead: what these photographs bring to the sets without labels"
    )
    arguments = parser.parse_args()
    found = []
    for name, _, folder in (each.partition("=") for each in arguments.sets):
        with tempfile.TemporaryDirectory() as work, chdir(work):
            shutil.copy(ROOT / paths.PARAMETERS, work)
            paths.EXTRA.mkdir(parents=True)
            if folder != paths.SAMPLE:
                set_parameters(paths.PARAMETERS, {"target": "activity"})
            each = Set(name, folder)
            if arguments.extra:
                found.append(with_extra(each, arguments.extra))
            else:
                found.append(summarise(each, measure(each, ROWS, BUDGETS)))
        print(found[-1].to_string(), flush=True)
        table, out = pd.concat(found), "label_efficiency_extra" if arguments.extra else "label_efficiency"
        text = table.round(3).to_markdown(index=False)
        write_text(RESULTS / f"{out}.md", f"# Label efficiency\n\n{hardware()}\n\n{text}\n")
        if not arguments.extra:
            picture(table)


if __name__ == "__main__":
    errors.run(main)
