"""What each choice of the recipe is worth on real photographs, by repeated, grouped, stratified cross-validation.

    python -m benchmarks.ablation DATA [--target activity] [--seed 1] [--rows NAME ...] [--out FILE.csv]

DATA is a folder in MPII's layout. A row is params.yaml's section `mobilenetv2`, or another row, with one change. All rows
that are split by video see the same folds; all train with the pipeline's own functions, and are scored on the fold that is
neither trained on nor used to choose the epoch. What did not pay is not in the pipeline: for its row it is put there from
here.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stages import annotate, chunked_resize, features
from stages.common.dataset import chunks
from stages.common.evaluation.calibration import calibration_error
from stages.common.evaluation.scores import f1
from stages.common.images import layout
from stages.common.images.decoding import decode
from stages.common.networks import backbones, heads
from stages.common.networks.serialization import head_of, save
from stages.common.recipes import pretrained
from stages.common.runtime import errors, parameters, paths, workers
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv
from stages.common.runtime.parameters import Pretrained
from stages.common.training import batches, trainer
from stages.common.training.losses import Loss, make_loss

MODEL = "mobilenetv2"
FOLDS = 5
REPEATS = 3
PROCESSES = 2
EPOCHS = 30  # of the schedule that has an end

Patches = Callable[[int], list[Any]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `change` is what it changes in the section of row `base`, from which it takes the rest too; without a base, in the
    default. `pixels`: squash, pad, crop (how a photograph becomes a square), mirrored rows, mirrored mean. `roots`: whether the
    head takes the roots of the features, as in its base if None. `patches` gets the steps of an epoch. `after`: what is done
    with the logits.
    """

    base: str = ""
    change: dict[str, Any] = field(default_factory=dict)
    pixels: str = "squash"
    group: str = "video"
    own_scale: bool = True
    roots: bool | None = None
    patches: Patches = lambda steps: []
    after: str = ""


def _flatten_head(kind: str, labels: int, dropout: float, penalty: float, features: Any) -> Any:
    layers = keras.layers.Flatten(name="flatten"), keras.layers.Dense(labels, dtype="float32", name="logits")
    return lambda maps: layers[1](layers[0](maps))


def _smoothed(imbalance: str, counts: np.ndarray) -> Loss:
    loss = make_loss(imbalance, counts)
    return lambda targets, logits: loss(targets * 0.9 + 0.1 / len(counts), logits)


def _optimizer(make: Callable[[float, int], Any]) -> Patches:
    """Another optimizer, made of the learning rate and the steps of an epoch."""
    return lambda steps: [patch.object(keras.optimizers, "Adam", lambda rate: make(rate, steps))]


_ADAM = keras.optimizers.Adam
_VALIDATE = trainer.validate


def _cosine(rate: float, steps: int) -> Any:
    warmup = 2 * steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, EPOCHS * steps - warmup, warmup_target=rate, warmup_steps=warmup
    )
    return _ADAM(schedule)


def _averaged(steps: int) -> list[Any]:
    """Before each validation the weights become their exponential moving average, as model.fit does after an epoch."""

    def validate(model: keras.Model, *arguments: Any) -> dict[str, float]:
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return _VALIDATE(model, *arguments)

    average = _optimizer(lambda rate, steps: _ADAM(rate, use_ema=True, ema_momentum=0.9))
    return [*average(steps), patch.object(trainer, "validate", validate)]


def _flattened(steps: int) -> list[Any]:
    return [patch.object(pretrained, "make_head", _flatten_head)]


_PLAIN = {"l2": 0.0, "imbalance": "class_weight", "refit": False}
_NOTEBOOKS = {"input_size": 224, "head": "conv", "l2": 0.0, "imbalance": "none", "refit": False}
_TUNING = {"fine_tune_epochs": 3, "fine_tune_layers": 12, "fine_tune_learning_rate": 1e-4}

REFERENCE = "+ refit = reference"
DEFAULT = "+ roots of the features, their direction = default"
ROWS = {
    "notebooks' recipe: flatten, softmax, split by image": Row(
        change=_NOTEBOOKS, group="image", own_scale=False, patches=_flattened
    ),
    "+ split by video": Row(change=_NOTEBOOKS, own_scale=False, patches=_flattened),
    "+ the backbone's own preprocessing": Row(change=_NOTEBOOKS, patches=_flattened),
    "+ pooled features, standardised": Row(change=_NOTEBOOKS | {"head": "softmax"}, roots=False),
    "+ class weights": Row(change=_PLAIN | {"input_size": 224}, roots=False),
    "+ input enlarged to 320": Row(change=_PLAIN, roots=False),
    "+ l2 100": Row(change={"imbalance": "class_weight", "refit": False}, roots=False),
    REFERENCE: Row(change={"imbalance": "class_weight"}, roots=False),
    "+ logit_adjustment in place of class weights": Row(roots=False),
    DEFAULT: Row(),
    "default, split by image": Row(base=DEFAULT, group="image"),
    "imbalance none": Row(base=REFERENCE, change={"imbalance": "none"}),
    "imbalance focal": Row(base=REFERENCE, change={"imbalance": "focal"}),
    "imbalance logit_adjustment": Row(base=REFERENCE, change={"imbalance": "logit_adjustment"}),
    "imbalance none, logits adjusted afterwards": Row(base="imbalance none", after="adjust"),
    "l2 10": Row(base=REFERENCE, change={"l2": 10.0}),
    "l2 1000": Row(base=REFERENCE, change={"l2": 1000.0}),
    "roots of the features, their direction, l2 300": Row(base=REFERENCE, change={"l2": 300.0}, roots=True),
    "dropout 0.2": Row(base=REFERENCE, change={"dropout": 0.2}),
    "imbalance none, label smoothing 0.1": Row(
        base="imbalance none", patches=lambda steps: [patch.object(trainer, "make_loss", _smoothed)]
    ),
    "no refit, cosine decay, 2 epochs of warm-up, no early stop": Row(
        base="+ l2 100", change={"epochs": EPOCHS, "patience": EPOCHS}, patches=_optimizer(_cosine)
    ),
    "no refit, weights averaged within each epoch (EMA 0.9)": Row(base="+ l2 100", patches=_averaged),
    "squares by padding": Row(base=REFERENCE, pixels="pad"),
    "squares by cropping": Row(base=REFERENCE, pixels="crop"),
    "input 224": Row(base=REFERENCE, change={"input_size": 224}),
    "input 384": Row(base=REFERENCE, change={"input_size": 384}),
    "backbone in bfloat16": Row(base=DEFAULT, change={"precision": "bfloat16"}),
    "no refit, mirrored photographs as further rows": Row(base="+ l2 100", pixels="mirrored rows"),
    "mirrored view in the mean, both times": Row(base=REFERENCE, pixels="mirrored mean"),
    "mirrored view in the mean when predicting": Row(base=REFERENCE, after="mirror"),
    "temperature from validation": Row(base="+ l2 100", after="temperature"),
    "no refit, input 224": Row(base="+ l2 100", change={"input_size": 224}),
    "head conv": Row(base="no refit, input 224", change={"head": "conv"}),
    "fine-tuning: 12 layers, rate 1e-5": Row(
        base="no refit, input 224", change=_TUNING | {"fine_tune_learning_rate": 1e-5}
    ),
    "fine-tuning: 12 layers, rate 1e-4": Row(base="no refit, input 224", change=_TUNING),
    "fine-tuning: 12 layers, rate 1e-4, no augmentation": Row(
        base="no refit, input 224",
        change=_TUNING,
        patches=lambda steps: [patch.object(batches, "augment", lambda pixels, generator: pixels)],
    ),
    "fine-tuning: 4 layers, rate 1e-4": Row(base="no refit, input 224", change=_TUNING | {"fine_tune_layers": 4}),
    "logistic regression on train": Row(after="logistic", change={"input_size": 224, "refit": False}),
    "logistic regression on train and validation": Row(after="logistic", change={"input_size": 224}),
}


def rooted(row: Row) -> bool:
    """Whether the head takes the roots of the features: as in the row's base, where it does not say."""
    if row.roots is not None:
        return row.roots
    return rooted(ROWS[row.base]) if row.base else True


def section(row: Row, default: Pretrained) -> Pretrained:
    """The parameters of a row."""
    base = section(ROWS[row.base], default) if row.base else default
    return Pretrained.model_validate(base.model_dump() | row.change)


def _pad(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.pad(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS, color="gray"))


def _crop(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def _mirrored(path: Path, size: int) -> np.ndarray:
    return decode(path, size)[:, ::-1]


DECODERS = {"squash": decode, "pad": _pad, "crop": _crop, "mirrored": _mirrored}


def _unit_scale(images: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.Rescaling(1 / 255, name="scale")(images)


def resized(work: Path, data: Path, names: list[str], size: int, pixels: str) -> Path:
    """The photographs as chunk files, made into squares by one of `DECODERS`."""
    folder = work / f"resized-{pixels}"
    if not folder.exists():
        folder.mkdir()
        with patch.object(chunked_resize, "decode", DECODERS[pixels]):
            for start in range(0, len(names), 64):
                chunked_resize.resize_chunk(
                    names[start : start + 64], layout.images_folder(data), size, folder / f"{start:05d}.h5"
                )
    return folder


def extracted(work: Path, source: Path, chosen: Pretrained, own_scale: bool) -> Path:
    """The features of a folder of chunk files, and the backbone."""
    input_size, dataset = chosen.input_size, chosen.features
    folder = work / f"{source.name}-{input_size}-{chosen.precision}-{dataset}{'' if own_scale else '-unit'}"
    if not folder.exists():
        folder.mkdir()
        family = backbones.BACKBONES[MODEL]
        changed = family if own_scale else family._replace(scale=_unit_scale)
        with patch.dict(backbones.BACKBONES, {MODEL: changed}):
            shape = chunks.Rows(source, "pixels").shape
            backbone = backbones.backbone(
                MODEL, shape[0], input_size, "imagenet", np.empty((0, *shape), np.uint8), chosen.precision
            )
        features.extract(backbone, source, folder, dataset, f"features of {folder.name}")
        save(backbone, folder / paths.backbone(MODEL).name, [])
    return folder


def merged(work: Path, plain: Path, mirrored: Path, kind: str) -> Path:
    """Features of both views: as rows of their own, named `mirrored NAME`, or as one mean."""
    folder = work / f"{plain.name}-{kind.replace(' ', '-')}"
    if not folder.exists():
        folder.mkdir()
        for path in chunks.paths(plain):
            names, pooled = chunks.read(path, "pooled")
            _, other = chunks.read(mirrored / path.name, "pooled")
            if kind == "mirrored mean":
                chunks.write(folder / path.name, names, {"pooled": (pooled + other) / 2})
            else:
                chunks.write(folder / path.name, names, {"pooled": pooled})
                marked = [f"mirrored {name}" for name in names]
                chunks.write(folder / f"mirrored-{path.name}", marked, {"pooled": other})
        save(
            keras.saving.load_model(plain / paths.backbone(MODEL).name, compile=False),
            folder / paths.backbone(MODEL).name,
            [],
        )
    return folder


@dataclass(frozen=True)
class Job:
    """One training of the row `name`; `mirror` are the features of the mirrored photographs."""

    name: str
    section: Pretrained
    seed: int
    split: pd.DataFrame
    folder: Path
    resized: Path
    mirror: Path


@dataclass(frozen=True)
class Result:
    """Logits of the scored fold, (n, labels), its true labels' numbers, (n,), and the seconds of training."""

    logits: np.ndarray
    truth: np.ndarray
    seconds: float


def _logits(model: keras.Model, job: Job, folder: Path, names: list[str]) -> np.ndarray:
    """From the features where the backbone is as it was, else from the images."""
    if job.section.fine_tune_epochs:
        rows, part = chunks.Rows(job.resized, "pixels"), model
    else:
        rows, part = chunks.Rows(folder, job.section.features), head_of(model)
    starts = range(0, len(names), 64)
    return np.concatenate([np.asarray(part.predict_on_batch(rows.read(names[start : start + 64]))) for start in starts])


def trained_parts(chosen: Pretrained) -> list[str]:
    """The parts that the model which is scored was trained on."""
    return ["train", "validation"] if chosen.refit else ["train"]


def _nll(logits: np.ndarray, truth: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(truth)), truth]).mean())


def _logistic(job: Job, labels: list[str]) -> np.ndarray:
    """The plain baseline on the same features, as logits with nothing for labels that it did not see."""
    rows = chunks.Rows(job.folder, "pooled")
    trained = job.split[job.split["part"].isin(trained_parts(job.section))]
    scored = job.split[job.split["part"] == "test"]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    model.fit(rows.read(list(trained["image"])), trained["label"])
    logits = np.full((len(scored), len(labels)), -1e3)
    logits[:, pd.Index(labels).get_indexer(model.classes_)] = model.predict_log_proba(rows.read(list(scored["image"])))
    return logits


@contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def run(job: Job) -> Result:
    """Train and predict the scored fold."""
    row = ROWS[job.name]
    labels = sorted(job.split["label"].unique())
    scored = job.split[job.split["part"] == "test"]
    truth = pd.Index(labels).get_indexer(pd.Index(scored["label"]))
    start = time.perf_counter()
    if row.after == "logistic":
        logits = _logistic(job, labels)
        return Result(logits, truth, time.perf_counter() - start)
    trained = job.split[job.split["part"].isin(trained_parts(job.section))]
    steps = -(-len(trained) // job.section.batch_size)
    with ExitStack() as stack:
        stack.enter_context(_silent())
        done = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not rooted(row):
            stack.enter_context(patch.object(heads, "_direction", lambda pooled: pooled))
        places = patch.multiple(paths, RESIZED=job.resized, features=lambda name: job.folder)
        for change in [places, *row.patches(steps)]:
            stack.enter_context(change)
        keras.backend.clear_session()
        model = pretrained.train(MODEL, job.section, job.seed, job.split, trainer.Trainer("ablation", done)).model
    seconds = time.perf_counter() - start
    logits = _logits(model, job, job.folder, list(scored["image"]))
    if row.after == "mirror":
        logits = (logits + _logits(model, job, job.mirror, list(scored["image"]))) / 2
    elif row.after == "adjust":
        counts = trained["label"].value_counts().reindex(labels, fill_value=0).to_numpy()
        # A label that was never seen has no prior to be freed of.
        logits = logits - np.log(np.where(counts > 0, counts / counts.sum(), 1))
    elif row.after == "temperature":
        held_out = job.split[job.split["part"] == "validation"]
        numbers = pd.Index(labels).get_indexer(pd.Index(held_out["label"]))
        known = _logits(model, job, job.folder, list(held_out["image"]))
        best = minimize_scalar(lambda log: _nll(known / np.exp(log), numbers), bounds=(-4, 4), method="bounded")
        logits = logits / np.exp(best.x)
    return Result(logits, truth, seconds)


def _groups(table: pd.DataFrame, group: str) -> pd.Series:
    if group == "image":
        return table["image"]
    return table["image"].where(table["video"].isna(), "video " + table["video"].astype("string"))


def folds(table: pd.DataFrame, group: str, seed: int) -> Iterator[pd.DataFrame]:
    """Splits in which each image is once in test and once in validation: image, part, label, video."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    places = np.empty(len(table), dtype=int)
    for number, (_, fold) in enumerate(splitter.split(table, table["label"], _groups(table, group))):
        places[fold] = number
    for number in range(FOLDS):
        part = np.full(len(table), "train", dtype=object)
        part[places == number] = "test"
        part[places == (number + 1) % FOLDS] = "validation"
        yield table.assign(part=part)


def _with_mirrored(split: pd.DataFrame) -> pd.DataFrame:
    train_rows = split[split["part"] == "train"]
    return pd.concat([split, train_rows.assign(image="mirrored " + train_rows["image"])], ignore_index=True)


def jobs(
    name: str, default: Pretrained, table: pd.DataFrame, data: Path, work: Path, size: int, seed: int
) -> list[Job]:
    """The trainings of one row: all folds of all repeats. Makes the features that they need."""
    row = ROWS[name]
    chosen = section(row, default)
    images = list(table["image"])
    both = row.pixels.startswith("mirrored")
    source = resized(work, data, images, size, "squash" if both else row.pixels)
    folder = extracted(work, source, chosen, row.own_scale)
    mirror = folder
    if both or row.after == "mirror":
        mirror = extracted(work, resized(work, data, images, size, "mirrored"), chosen, own_scale=True)
    if both:
        folder = merged(work, folder, mirror, row.pixels)
    made = []
    decoded = {name for path in chunks.paths(source) for name in chunks.names(path)}
    usable = table[table["image"].isin(decoded)].reset_index(drop=True)
    for repeat in range(REPEATS):
        for split in folds(usable, row.group, seed * 1000 + repeat):
            full = _with_mirrored(split) if row.pixels == "mirrored rows" else split
            made.append(Job(name, chosen, seed * 1000 + repeat, full, folder, source, mirror))
    return made


def summary(name: str, results: list[Result], base: list[Result] | None) -> dict[str, Any]:
    """One line of the table. `change`: the mean difference to the base row, and its range over the repeats' means."""
    scores = np.array([f1(result.truth, result.logits.argmax(axis=1), "macro") for result in results])
    line: dict[str, Any] = {
        "row": name,
        "macro_f1": scores.mean(),
        "lowest": scores.min(),
        "highest": scores.max(),
        "accuracy": np.mean([(result.logits.argmax(axis=1) == result.truth).mean() for result in results]),
        "calibration_error": np.mean([_calibration(part) for part in _repeats(results)]),
        "seconds": np.median([result.seconds for result in results]),
    }
    if base is not None:
        other = np.array([f1(result.truth, result.logits.argmax(axis=1), "macro") for result in base])
        means = (scores - other).reshape(REPEATS, FOLDS).mean(axis=1)
        line |= {"change": means.mean(), "change_lowest": means.min(), "change_highest": means.max()}
    return line


def _repeats(results: list[Result]) -> list[list[Result]]:
    return [results[start : start + FOLDS] for start in range(0, len(results), FOLDS)]


def _calibration(results: list[Result]) -> float:
    logits = np.concatenate([result.logits for result in results])
    truth = np.concatenate([result.truth for result in results])
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)
    return calibration_error(probabilities, logits.argmax(axis=1) == truth)


def base_of(name: str) -> str | None:
    """The row that a row is compared with: its own base, or, in the list that leads to the default, the one before."""
    if ROWS[name].base or ROWS[name].after == "logistic":
        return ROWS[name].base or DEFAULT
    names = list(ROWS)
    return names[names.index(name) - 1] if name != names[0] else None


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    text = [
        "| recipe | macro F1 | change | compared with | accuracy | calibration error | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        change, base = "", ""
        if not pd.isna(line.get("change", np.nan)):
            base = base_of(line["row"]) or ""
            change = f"{line['change']:+.3f} ({line['change_lowest']:+.3f} to {line['change_highest']:+.3f})"
        text.append(
            f"| {line['row']} | {line['macro_f1']:.3f} ({line['lowest']:.2f}-{line['highest']:.2f}) | {change} | {base} "
            f"| {line['accuracy']:.3f} | {line['calibration_error']:.3f} | {line['seconds']:.1f} |"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder in MPII's layout")
    parser.add_argument("--target", default="activity", choices=("category", "activity"))
    parser.add_argument("--seed", type=int, choices=range(1000), default=1, metavar="N", help="of folds and trainings")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file, after each row")
    arguments = parser.parse_args()
    values = parameters.load()
    annotations = annotate.present(
        annotate.read(layout.annotation_file(arguments.data)), layout.images_folder(arguments.data)
    )
    labelled = annotations[annotations["labelled"] & (annotations[arguments.target] != "")]
    table = labelled[["image", "video"]].assign(label=labelled[arguments.target]).reset_index(drop=True)
    videos = _groups(table, "video").nunique()
    largest = table["label"].value_counts().max() if len(table) else 0
    if table["label"].nunique() < 2 or videos < FOLDS or largest < FOLDS:
        raise UserError(
            f"{arguments.data} has {len(table)} photographs of {table['label'].nunique()} {arguments.target} labels in {videos} "
            f"videos, at most {largest} of a label; expected two labels, {FOLDS} videos and {FOLDS} photographs of a label or more"
        )
    done: dict[str, list[Result]] = {}
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        default = values.mobilenetv2
        prepared = {
            name: jobs(name, default, table, arguments.data, Path(work), values.resize.size, arguments.seed)
            for name in ROWS
            if name in arguments.rows
        }
        # One thread a process: the trainings are too small for more.
        os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with (
            workers.dead_worker("a training was killed, probably for lack of memory; run again with fewer --rows"),
            ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"), initializer=workers.prepare) as pool,
        ):
            try:
                with workers.starting():
                    waiting = {name: [pool.submit(run, job) for job in made] for name, made in prepared.items()}
                for name, futures in waiting.items():
                    done[name] = [future.result() for future in futures]
                    lines.append(summary(name, done[name], done.get(base_of(name) or "")))
                    print(markdown(lines[-1:]).splitlines()[-1], flush=True)
                    if arguments.out:
                        write_csv(arguments.out, pd.DataFrame(lines).round(4))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    print(f"\n{markdown(lines)}")


if __name__ == "__main__":
    errors.run(main)
