"""Every labelled image predicted by models that have not seen its video: the chosen model, trained once a fold.

The folds are grouped by `split.group` and stratified by label. In each, the recipe of the model runs as it does in the stage
train; its validation images, by which it stops and chooses epochs, are a part of the other folds' images. A linear head with
refit has nothing to choose: it is solved once.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.model_selection import StratifiedGroupKFold

from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import PARTS, UNLABELLED, images_of, labels_of, read_split, video_keys, without_labels
from stages.common.evaluation.label_issues import mean_prediction, suspicious_labels
from stages.common.evaluation.predictions import parse_predictions, prediction_table
from stages.common.evaluation.summary import headline, summary
from stages.common.report.suspicious_page import suspicious_page
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.backend import device, keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import remove, write_csv, write_json, write_text
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import Parameters, Pretrained, SelfSupervised
from stages.common.runtime.progress import progress
from stages.common.runtime.resuming import check_array, code, fingerprint, load_array, resumable, save_array, unfinished
from stages.common.training.batches import Part
from stages.common.training.distribution import share_out
from stages.common.training.recipe import Recipe, recipe_of_folds
from stages.common.training.trainer import Trainer, logits_of

STAGE = "cross-validate"
BATCH = 32


def folds(labels: pd.Series, groups: pd.Series, count: int, seed: int) -> np.ndarray:
    """The fold of each image, 0 to count - 1: no group is in two folds, and each label is spread over them.

    Args:
        labels: (n,) str.
        groups: what must not be divided, (n,) str.
        count: number of folds, at most `max_folds`.
        seed: another one gives other folds.
    """
    fold = np.full(len(labels), -1)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of labels with fewer images than folds
        for number, (_, chosen) in enumerate(splitter.split(np.empty(len(labels)), labels, groups)):
            fold[chosen] = number
    return fold


def max_folds(labels: pd.Series, groups: pd.Series) -> int:
    """The largest number of folds: each needs a group, and a label needs an image in each."""
    return int(min(groups.nunique(), labels.value_counts().max()))


def part_of_fold(images: pd.DataFrame, groups: pd.Series, fold: np.ndarray, number: int, share: float) -> pd.DataFrame:
    """`images` with the parts of one fold: it is the test part, and about `share` of the other images validate, if any.

    Args:
        images: a table like data/split.csv.
        groups: what must not be divided.
        fold: of each image, as `folds` returns it.
        number: the fold.
        share: of the other images; 0: there is no validation part.

    Raises:
        UserError: too few images are left to learn from.
    """
    others = np.flatnonzero(fold != number)
    parts = np.full(len(images), "test", dtype=object)
    parts[others] = "train"
    labels, of_others = images["label"].iloc[others], groups.iloc[others]
    most = max_folds(labels, of_others)
    if share and most >= 2:
        inner = folds(labels, of_others, min(max(2, round(1 / share)), most), number)
        parts[others[inner == 0]] = "validation"
    if (share and most < 2) or images.loc[parts == "train", "label"].nunique() < 2:
        raise UserError(
            f"fold {number + 1} leaves too few images to learn two labels from and to validate; expected more labelled images, "
            "or more folds"
        )
    return images.assign(part=parts)


def train_and_predict(train: Recipe, table: pd.DataFrame, values: Parameters, folder: Path, stage: str) -> np.ndarray:
    """Train the chosen model on the parts train and validation of `table`, and predict its test part.

    Args:
        train: the recipe of the model.
        table: like data/split.csv.
        values: the parameters.
        folder: of checkpoints.
        stage: for messages.

    Returns:
        Probabilities, (test images, labels) float64.
    """
    keras.utils.clear_session()  # the models of other folds
    share_out()
    trained = train(values.model, values.chosen, values.seed, table, Trainer(stage, folder))
    test = images_of(table, "test", trained.rows)
    part = Part(list(test["image"]), np.zeros(len(test), int))
    probabilities: np.ndarray = softmax(logits_of(trained.model, trained.rows, part, BATCH).astype(float), axis=1)
    return probabilities


def _images(values: Parameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images to divide into folds, which are those with a label that could be decoded, and those without labels.

    Of the latter those from which the model's own encoder learns: another one of them makes another model file, on which this
    stage depends.
    """
    table, rows = read_split(), Rows(paths.RESIZED, "pixels")
    parts = [part for part in PARTS if part != "test" or not values.cross_validation.hold_out_test]
    chosen = table["part"].isin(parts) & table["image"].isin(rows.places)
    unlabelled = (table["part"] == UNLABELLED) & table["image"].isin(without_labels(table))
    return table.loc[chosen].reset_index(drop=True), table[unlabelled]


def _warn(labels: pd.Series, groups: pd.Series, group: str) -> None:
    """Say which labels are never both learned and predicted."""
    counts = groups.groupby(labels).nunique()
    if alone := sorted(counts[counts == 1].index):
        print(f"{STAGE}: warning: in one {group} only, so never predicted correctly: {'; '.join(alone)}")


def _run(values: Parameters) -> None:
    name, section, how = values.model, values.chosen, values.cross_validation
    if values.split.labels_per_class != "all":
        raise UserError(
            f"split.labels_per_class is {values.split.labels_per_class}; cross-validate expects all: its folds learn from the "
            "labels of the validation and test part, which keep theirs"
        )
    (images, unlabelled), out = _images(values), paths.out_of_fold(name)
    groups = video_keys(images["image"], images["video"]) if values.split.group == "video" else images["image"]
    if (most := max_folds(images["label"], groups)) < how.folds:
        raise UserError(
            f"cross_validation.folds is {how.folds}, but there are only {groups.nunique()} {values.split.group}s, and at most "
            f"{images['label'].value_counts().max()} images of a label; "
            + (f"set it to {most} or less" if most > 1 else "expected at least two of both")
        )
    _warn(images["label"], groups, values.split.group)
    seeds = [
        int(np.random.SeedSequence((values.split.seed, repeat)).generate_state(1)[0]) for repeat in range(how.repeats)
    ]
    fold_of = [folds(images["label"], groups, how.folds, seed) for seed in seeds]
    once = isinstance(section, Pretrained) and section.solved and section.refit
    share = 0.0 if once else values.split.validation / (1 - values.split.test)
    folders = [paths.RESIZED, paths.UNLABELLED if isinstance(section, SelfSupervised) else paths.features(name)]
    inputs = fingerprint(file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    train = recipe_of_folds(values)  # before code(), which lists what is loaded
    depends = name, section.model_dump(), how.model_dump(), values.seed, share, seeds, images.to_csv(), inputs
    learned = [values.pretrain.model_dump(), unlabelled.to_csv()] if isinstance(section, SelfSupervised) else []
    with resumable(out, code(), device(), *depends, *learned) as folder:
        found = _predict_folds(train, values, images, unlabelled, groups, fold_of, share, folder)
        write_csv(out, _table(images, fold_of, found))
        _write_results(values, out, len(images))


def _predict_folds(
    train: Recipe,
    values: Parameters,
    images: pd.DataFrame,
    unlabelled: pd.DataFrame,
    groups: pd.Series,
    fold_of: list[np.ndarray],
    share: float,
    folder: Path,
) -> list[list[np.ndarray]]:
    """The probabilities of each repeat and fold, resuming from those in `folder`."""
    how, labels = values.cross_validation, len(labels_of(images))
    pieces = {
        folder / f"{repeat}-{number}.npz": (repeat, number)
        for repeat in range(how.repeats)
        for number in range(how.folds)
    }

    def check(path: Path) -> None:
        repeat, number = pieces[path]
        check_array(path, ((fold_of[repeat] == number).sum(), labels))

    left = unfinished(pieces, STAGE, "folds", check)
    with progress(len(pieces), STAGE, "fold", initial=len(pieces) - len(left)) as bar:
        for path in left:
            repeat, number = pieces[path]
            table = part_of_fold(images, groups, fold_of[repeat], number, share)
            checkpoints = path.with_suffix("")
            checkpoints.mkdir(exist_ok=True)
            place = f"{STAGE} {repeat * how.folds + number + 1}/{len(pieces)}"
            save_array(path, train_and_predict(train, pd.concat([table, unlabelled]), values, checkpoints, place))
            remove(checkpoints)
            bar.update()
    found: list[list[np.ndarray]] = [[] for _ in range(how.repeats)]
    for path, (repeat, _) in pieces.items():
        found[repeat].append(load_array(path))
    return found


def _write_results(values: Parameters, out: Path, images: int) -> None:
    """Scores of the predictions in `out`, and the labels that may be wrong, as a table and with pictures."""
    name, how = values.model, values.cross_validation
    with out.open(encoding="utf-8", newline="") as lines:
        predictions = parse_predictions(lines)
    repeats = [table for _, table in predictions.groupby("repeat")]
    counts = {"images": images, "folds": how.folds, "repeats": how.repeats}
    scores = {"model": name, **counts, **summary(repeats)}
    issues = suspicious_labels(mean_prediction(repeats))
    html = suspicious_page(issues, images, values.data, name, Rows(paths.RESIZED, "pixels").read)
    write_csv(paths.suspicious_labels(name), issues.round(3))
    write_text(paths.SUSPICIOUS_PAGE, html)
    write_json(paths.CROSS_VALIDATION, scores)
    print(f"{STAGE}: {name}: {headline(scores)} on {images} images, with 95 % intervals")
    print(f"{STAGE}: the labels that are most probably wrong are in {paths.SUSPICIOUS_PAGE}")


def _table(images: pd.DataFrame, fold_of: list[np.ndarray], found: list[list[np.ndarray]]) -> pd.DataFrame:
    """The predictions of all folds, a block of rows for each repeat, in the order of `images`."""
    labels = labels_of(images)
    tables = []
    for repeat, (fold, of_folds) in enumerate(zip(fold_of, found, strict=True)):
        probabilities = np.empty((len(images), len(labels)))
        for number, values in enumerate(of_folds):
            probabilities[fold == number] = values
        rows = images[["image", "video", "label"]].copy()
        rows.insert(0, "repeat", repeat + 1)
        rows.insert(1, "fold", fold + 1)
        tables.append(prediction_table(rows, probabilities, labels))
    return pd.concat(tables)


@lock(STAGE)
def main() -> None:
    values = parameters.load()
    print(f"{STAGE}: {values.model}, on {device()}")
    _run(values)


if __name__ == "__main__":
    errors.run(main)
