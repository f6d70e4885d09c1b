"""data/annotations.csv to data/split.csv: train, validation, test, unlabelled; stratified by label, grouped by video.

Parts that the data set gives are kept.
"""

from collections import Counter

import numpy as np
import pandas as pd

from stages.common.dataset.splits import HELD_OUT, PARTS, UNLABELLED, is_labelled, video_keys, without_labels
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import reading, write_csv, write_json, write_text
from stages.common.runtime.lock import lock
from stages.common.splitting.assignment import Groups, assign


def split(annotations: pd.DataFrame, target: str, parameters: parameters.Split) -> tuple[pd.DataFrame, list[str]]:
    """Assign every image to a part: to the given one if the data set gives parts, else by `assign`.

    Args:
        annotations: the table that `annotate` writes.
        target: the column to learn.
        parameters: the section `split`.

    Returns:
        One row per image in the order of `annotations`: image, part (one of `PARTS`, or unlabelled, or held_out where an
        image without label has a given part to be tested on), label (empty where it has none), video; and the labels that
        are in train only.

    Raises:
        UserError: fewer than two labels, no label with enough groups to be in all parts, a video in two given parts, or a
            label that no given train image has.
    """
    labelled = annotations["labelled"] & (annotations[target] != "")
    labels = annotations[target].where(labelled, "")
    if (found := labels[labelled].nunique()) < 2:
        names = f"one label only ({labels[labelled].iloc[0]!r})" if found else "no label at all"
        other = "activity" if target == "category" else "category"
        more = annotations.loc[annotations["labelled"], other].nunique() > 1
        raise UserError(
            f"target {target} has {names} in {paths.ANNOTATIONS}; expected two or more: "
            + (f"set target to {other}" if more else "add images of other labels")
        )
    images, videos = annotations["image"], annotations["video"]
    keys = video_keys(images, videos) if parameters.group == "video" else images
    given = annotations["part"]
    part = given.where(labelled, given.map(dict.fromkeys(PARTS[1:], HELD_OUT)).fillna(UNLABELLED))
    if (part[labelled] != "").any():
        _check_given(part[labelled], keys[labelled], labels[labelled])
    # What is not given is drawn from train, which is everything where nothing is given.
    drawn = [name for name in PARTS[1:] if not (part == name).any()]
    if drawn:
        pool = labelled & part.isin(["", PARTS[0]])
        part[pool] = _drawn(labels[pool], keys[pool], drawn, parameters)
    few = sorted(set(labels[labelled]) - set(labels[part.isin(PARTS[1:])]))
    return pd.DataFrame({"image": images, "part": part, "label": labels, "video": videos}), few


def _check_given(part: pd.Series, keys: pd.Series, labels: pd.Series) -> None:
    divided = part.groupby(keys).nunique() > 1
    if divided.any():
        key = divided.idxmax()
        parts = " and ".join(sorted(part[keys == key].unique(), key=PARTS.index))
        raise UserError(
            f"data gives two parts, {parts}, to the images of one group, {key!r}; expected all of them in one part: move or "
            "remove some"
        )
    if missing := sorted(set(labels) - set(labels[part == PARTS[0]])):
        raise UserError(
            f"data gives no image of label {missing[0]!r} to the part train; expected at least one, so that it can be learnt"
        )


def _drawn(labels: pd.Series, keys: pd.Series, names: list[str], parameters: parameters.Split) -> list[str]:
    """Train or one of the parts `names` for each image."""
    numbers, _ = pd.factorize(keys)
    groups: Groups = [Counter() for _ in range(numbers.max() + 1)]
    for number, label in zip(numbers, labels, strict=True):
        groups[number][label] += 1
    shares = [getattr(parameters, name) for name in names]
    parts, few = assign(groups, (1 - sum(shares), *shares), parameters.seed)
    if len(few) == labels.nunique():
        count, kind = len(names) + 1, f"{parameters.group}s" if keys.duplicated().any() else "images"
        raise UserError(
            f"{len(groups)} {kind} with {len(labels)} labelled images of {len(few)} labels are too few: expected at least "
            f"one label in {count} {kind} or more, one each for {', '.join((PARTS[0], *names))}"
        )
    return [(PARTS[0], *names)[parts[number]] for number in numbers]


def with_budget(table: pd.DataFrame, budget: int, seed: int) -> pd.DataFrame:
    """`table` with at most `budget` train images of each label: the others become unlabelled.

    Those that keep it are of as many videos as there are, in a random order. A smaller budget of the same seed is a part of
    a larger one.
    """
    train = table[table["part"] == PARTS[0]]
    train = train.assign(key=video_keys(train["image"], train["video"]))
    train = train.sample(frac=1, random_state=np.random.default_rng(seed))
    train["turn"] = train.groupby(["label", "key"]).cumcount()
    rank = train.sort_values("turn", kind="stable").groupby("label").cumcount()
    hidden = rank.index[rank >= budget]
    return table.assign(
        part=table["part"].where(~table.index.isin(hidden), UNLABELLED),
        label=table["label"].where(~table.index.isin(hidden), ""),
    )


def counts(table: pd.DataFrame, few: list[str]) -> dict[str, int]:
    """The stage's metrics: images a part, labels, and what could not be split."""
    labelled = table[is_labelled(table)]
    return {
        **{part: int((table["part"] == part).sum()) for part in (*PARTS, UNLABELLED, HELD_OUT)},
        "labels": labelled["label"].nunique(),
        "labels_in_train_alone": len(few),
        "images_without_video": int((labelled["video"] == "").sum()),
    }


@lock("split")
def main() -> None:
    values = parameters.load()
    with reading(paths.ANNOTATIONS):
        annotations = pd.read_csv(
            paths.ANNOTATIONS,
            keep_default_na=False,
            dtype=dict.fromkeys(("image", "category", "activity", "video", "part"), "str"),
        )
    table, few = split(annotations, values.target, values.split)
    pretraining = without_labels(table)
    # By the seed of training: over several seeds, other images keep their labels and the test part stays.
    if (budget := values.split.labels_per_class) != "all":
        table = with_budget(table, budget, values.seed)
    write_csv(paths.SPLIT, table)
    # Which images, not which part: a new split does not decode and resize them again.
    for path, names in (
        (paths.IMAGE_LIST, annotations.loc[annotations["labelled"], "image"]),
        (paths.UNLABELLED_LIST, annotations.loc[~annotations["labelled"], "image"]),
        (paths.PRETRAINING_LIST, pretraining),
    ):
        write_text(path, "".join(f"{name}\n" for name in names))
    numbers = counts(table, few)
    write_json(paths.SPLIT_METRICS, numbers)
    given = sorted(set(annotations.loc[is_labelled(table), "part"]) - {""}, key=PARTS.index)
    _show(numbers, int(is_labelled(table).sum()), values.split, given, few)


def _show(numbers: dict[str, int], labelled: int, section: parameters.Split, given: list[str], few: list[str]) -> None:
    """Print what the parts are, which of them the data set gives, and what could not be split."""
    budget = section.labels_per_class
    if given:
        rest = [part for part in PARTS[1:] if part not in given]
        drawn = (
            f"; {' and '.join(rest)} drawn from train"
            if rest
            else f"; the section split of {paths.PARAMETERS} is not used"
        )
        print(f"split: the data gives {', '.join(given)}{drawn}")
    print("split:", ", ".join(f"{numbers[part]} {part}" for part in (*PARTS, UNLABELLED)))
    if numbers[HELD_OUT]:
        print(f"split: {numbers[HELD_OUT]} images without label are in a given validation or test part: not used")
    if budget != "all":
        kept = numbers[PARTS[0]]
        print(f"split: {kept} train images keep their label, at most {budget} of each: the others count as unlabelled")
    without = numbers["images_without_video"]
    if section.group == "video" and without:
        which = "no labelled image has a" if without == labelled else f"{without} labelled images have no"
        print(
            f"split: warning: {which} video or group; each is treated as a video of its own. The stage audit looks for near-copies"
        )
    if few and given:
        print(f"split: warning: no validation or test image has the label: {'; '.join(few)}")
    elif few:
        kind = "images" if without == labelled else f"{section.group}s"
        print(f"split: warning: in too few {kind} for every part, so in train only: {'; '.join(few)}")


if __name__ == "__main__":
    errors.run(main)
