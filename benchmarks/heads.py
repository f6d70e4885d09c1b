"""Features computed once against the frozen backbone in each epoch, for one head and for a sweep; and backbones in bfloat16."""

import shutil
import statistics
import subprocess
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.pipeline import commit, fresh_clone
from stages.common.backbones.backbone import backbone
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.backbones.catalog import NETWORKS
from stages.common.dataset import chunks
from stages.common.dataset.splits import read_split
from stages.common.networks.heads import make_head
from stages.common.networks.model_file import FEATURES
from stages.common.runtime import parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.parameters import Pretrained
from stages.common.runtime.plain_yaml import parse_yaml
from stages.common.training.recipe import labelled_parts, phase_of
from stages.common.training.trainer import Examples, Trainer

MODEL = "vgg16"
EPOCHS = 30
RATES = [round(1e-4 * 10 ** (step / 4.5), 6) for step in range(10)]

NOTES = f"""
{MODEL}, random weights (ImageNet's take the same time), with the parameters of params.yaml, except for {EPOCHS} epochs without an
early stop. *Frozen backbone in each epoch*: the same model trained by the same functions on the images, the mean of two epochs (validation
included) times {EPOCHS}. *Features once*: `dvc repro` from the resized images to the scores, start-up, refit, inference and dvc included. *The sweep*:
`dvc exp run --queue` with ten learning rates and `dvc queue start -j 2`, to the last one's end.

*bfloat16*: images per second through each backbone, batches of 32 (`features` now takes 8 on a CPU), in turn, medians of 10; it is faster only
on processors that have bfloat16 instructions. *Folded*: with batch normalisation folded into the convolutions' weights, as
`features` runs it, against the network as Keras builds it (VGG16 has none). bfloat16 costs MobileNetV2 0.009 of macro F1 (docs/ablation.md), so float32 stays the default.
"""


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """One head, a sweep of ten, and the backbones in bfloat16: seconds or images per second, the baseline's, and the ratio."""
    clone = fresh_clone(work / "clone")
    values = parse_yaml((clone / paths.PARAMETERS).read_text(encoding="utf-8"))
    values |= {"data": str(photographs), "target": "activity", "weights": "random", "model": MODEL}
    values[MODEL] |= {"epochs": EPOCHS, "patience": EPOCHS}
    (clone / paths.PARAMETERS).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
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
        {"what": "one head, features included", "ours": once, "baseline": EPOCHS * epoch, "target": 20},
        {"what": "ten learning rates", "ours": sweep, "baseline": 10 * EPOCHS * epoch, "target": 150},
    ]
    for row in rows:
        row["ratio"] = row["baseline"] / row["ours"]
    shutil.rmtree(clone / ".dvc/tmp", ignore_errors=True)
    return pd.DataFrame(
        rows + [row for name in ("vgg16", "xception", "mobilenetv2", "efficientnet_lite0") for row in _backbones(name)]
    )


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
    with chdir(clone):
        section: Pretrained = getattr(parameters.load(), MODEL)
        rows = chunks.Rows(paths.RESIZED, "pixels")
        labels, train, validation = labelled_parts(read_split(), rows)
        images = rows.read(list(rows.places)[:32])
        frozen = backbone(NETWORKS[MODEL], rows.shape[0], section.pixels, "random", images)
        pooled = keras.layers.GlobalAveragePooling2D(name=FEATURES)(frozen.output)
        features = np.asarray(keras.Model(frozen.input, pooled).predict_on_batch(images))
        head = make_head(section.head, len(labels), 0.0, [features])
        model = keras.Model(frozen.input, head(pooled))
        checkpoints = clone / "each"
        checkpoints.mkdir()
        trainer, phase = Trainer("benchmark", checkpoints), phase_of("each", section, 1, epochs=2, patience=2)
        trainer.fit(model, Examples(rows, train, validation), phase)
        return trainer.seconds / phase.epochs


def _backbones(name: str) -> list[dict[str, Any]]:
    size = 224
    images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), np.uint8)
    plain, brief = (
        backbone(NETWORKS[name], size, size, "random", images, precision) for precision in ("float32", "bfloat16")
    )
    models = {"plain": plain, "float32": fold_batch_norm(plain), "bfloat16": fold_batch_norm(brief)}
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
                "baseline": speeds[theirs],
                "ratio": speeds[ours] / speeds[theirs],
                "target": target,
            }
        )
    return rows
