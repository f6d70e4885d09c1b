"""Features computed once against the frozen backbone in each epoch, for one head and for a sweep; and features in bfloat16."""

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.pipeline import commit, fresh_clone
from stages.common import chunks, networks, parameters
from stages.common.backend import keras
from stages.common.batches import Part
from stages.common.fitting import Log, Phase, fit
from stages.common.parts import labels_of, read_split

MODEL = "vgg16"
EPOCHS = 30
RATES = [round(1e-4 * 10 ** (step / 4.5), 6) for step in range(10)]

NOTES = f"""
{MODEL}, random weights (ImageNet's take the same time), all of whose parameters are those of params.yaml but for {EPOCHS} epochs without an
early stop. *Frozen backbone in each epoch*: the same model trained by the same functions on the images, the mean of two epochs (validation
included) times {EPOCHS}. *Features once*: `dvc repro` from the resized images to the scores, start-up, refit, inference and dvc included. *The sweep*:
`dvc exp run --queue` with ten learning rates and `dvc queue start -j 2`, to the last one's end.

*bfloat16*: images a second through each backbone as `features` runs it, batches of 32, in turn, medians of 10; the processor must
have bfloat16 instructions for it to pay. *Folded*: with the normalisation in the convolutions' weights, as `features` runs it, against
the network as Keras builds it (VGG16 has none). bfloat16 costs MobileNetV2 0.009 of macro F1 (docs/ablation.md), so float32 stays the default.
"""


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """One head, a sweep of ten, and the backbones in bfloat16; seconds or images a second of both sides, and the ratio."""
    clone = fresh_clone(work / "clone")
    text = (clone / "params.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("\ndata: data/raw/sample", f"\ndata: {photographs}"),
        ("\ntarget: category", "\ntarget: activity"),
        ("\nweights: auto", "\nweights: random"),
        ("\nmodel: scratch", f"\nmodel: {MODEL}"),
        ("\n  patience: 8", f"\n  patience: {EPOCHS}"),
    ):
        text = text.replace(old, new)
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    commit(clone, "What is measured")
    _run(clone, "dvc", "repro", "chunked-resize")
    once = _run(clone, "dvc", "repro")
    commit(clone, "One head")
    start = time.perf_counter()
    rates = ",".join(map(str, RATES))
    _run(clone, "dvc", "exp", "run", "--queue", "-S", f"{MODEL}.learning_rate={rates}")
    _run(clone, "dvc", "queue", "start", "-j", "2")
    _wait(clone)
    sweep = time.perf_counter() - start
    epoch = _epoch(clone)
    rows: list[dict[str, Any]] = [
        {"what": "one head, features included", "ours": once, "the other side": EPOCHS * epoch, "target": 20},
        {"what": "ten learning rates", "ours": sweep, "the other side": 10 * EPOCHS * epoch, "target": 150},
    ]
    for row in rows:
        row["ratio"] = row["the other side"] / row["ours"]
    shutil.rmtree(clone / ".dvc/tmp", ignore_errors=True)
    return pd.DataFrame(rows + [row for name in networks.BACKBONES for row in _backbones(name)])


def _run(folder: Path, *command: str) -> float:
    start = time.perf_counter()
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return time.perf_counter() - start


def _wait(clone: Path) -> None:
    while True:
        shown = subprocess.run(["dvc", "queue", "status"], cwd=clone, capture_output=True, text=True, check=True).stdout
        states = [
            line.split()[-1] for line in shown.splitlines() if line.endswith(("Success", "Failed", "Running", "Queued"))
        ]
        if "Failed" in states:
            raise SystemExit(f"an experiment of the sweep failed:\n{shown}")
        if states.count("Success") == len(RATES):
            return
        time.sleep(0.5)


def _epoch(clone: Path) -> float:
    """Seconds of an epoch with the frozen backbone in the model, validation included: the mean of two."""
    before = Path.cwd()
    os.chdir(clone)
    try:
        section = getattr(parameters.load(), MODEL)
        rows = chunks.Rows(Path("data/resized"), "pixels")
        split = read_split()
        labels = labels_of(split)
        parts = [
            Part(list(part["image"]), pd.Index(labels).get_indexer(pd.Index(part["label"])))
            for part in (split[split["part"] == name] for name in ("train", "validation"))
        ]
        names = list(rows.places)[:32]
        backbone = networks.backbone(MODEL, rows.shape[0], section.input_size, "random", rows.read(names))
        pooled = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
        examples = np.asarray(keras.Model(backbone.input, pooled).predict_on_batch(rows.read(names)))
        head = networks.head(section.head, len(labels), section.dropout, 0.0, [examples])
        model = keras.Model(backbone.input, head(pooled))
        phase = Phase("each", 2, 2, section.learning_rate, section.batch_size, section.imbalance, 1, augment=False)
        log = Log("benchmark")
        done = clone / "each"
        done.mkdir()
        fit(model, rows, (parts[0], parts[1]), phase, log, done)
        return log.seconds / phase.epochs
    finally:
        os.chdir(before)


def _backbones(name: str) -> list[dict[str, Any]]:
    size = 224
    images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), np.uint8)
    plain, brief = (
        networks.backbone(name, size, size, "random", images, precision) for precision in ("float32", "bfloat16")
    )
    models = {"plain": plain, "float32": networks.folded(plain), "bfloat16": networks.folded(brief)}
    seconds: dict[str, list[float]] = {way: [] for way in models}
    for repetition in range(11):
        for way, model in models.items():
            start = time.perf_counter()
            model.predict_on_batch(images)
            if repetition:  # the first one compiles
                seconds[way].append(time.perf_counter() - start)
    speeds = {way: len(images) / statistics.median(values) for way, values in seconds.items()}
    rows: list[dict[str, Any]] = []
    for ours, theirs, what, target in (
        ("bfloat16", "float32", "in bfloat16 against float32", 1.8),
        ("float32", "plain", "folded against as it is, float32", None),
    ):
        rows.append(
            {
                "what": f"{name}: images/s {what}",
                "ours": speeds[ours],
                "the other side": speeds[theirs],
                "ratio": speeds[ours] / speeds[theirs],
                "target": target,
            }
        )
    return rows
