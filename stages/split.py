"""data/annotations.csv to data/split.csv: train, validation, test, unlabelled; stratified by label, grouped by video.

Parts that the data set gives are kept.
"""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd

from stages.common.dataset.splits import PARTS, UNLABELLED, video_keys
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import reading, write_csv, write_json, write_text
from stages.common.runtime.lock import lock

ATTEMPTS = 20
MAX_ASSIGNED = 200_000  # groups in all attempts together: of many groups, few orders are as good

Groups = list[Counter[str]]


def assign(groups: Groups, fractions: tuple[float, ...], seed: int) -> tuple[list[int], list[str]]:
    """Assign each group to a part so that each label's images are divided as `fractions` says.

    Several random orders are tried and the one closest to the fractions is kept. A label with too few groups for all
    parts goes to the first one with all of them.

    Args:
        groups: images by label, one counter a group.
        fractions: of the parts; the first one is train.
        seed: of the random orders.

    Returns:
        The part of each group (an index into `fractions`), and the labels that are in train alone, sorted.
    """
    generator = np.random.default_rng(seed)
    totals: Counter[str] = Counter()
    for group in groups:
        totals.update(group)
    few = _too_few(groups, set(), len(fractions))
    while True:
        best: tuple[float, list[int]] | None = None
        failures: Counter[str] = Counter()
        for _ in range(max(2, min(ATTEMPTS, MAX_ASSIGNED // len(groups)))):
            parts = _attempt(groups, fractions, totals, few, generator)
            absent = _absent(groups, parts, len(fractions)) - few
            failures.update(absent)
            cost = _cost(groups, parts, fractions, totals)
            if not absent and (best is None or cost < best[0]):
                best = cost, parts
        if best is not None:
            return best[1], sorted(few)
        few = _too_few(groups, few | {max(sorted(failures), key=failures.__getitem__)}, len(fractions))


def _too_few(groups: Groups, few: set[str], parts: int) -> set[str]:
    """`few`, and every label that can't be in all parts: too few groups, or too few that no label of `few` keeps in train."""
    while True:
        everywhere = Counter(label for group in groups for label in group)
        free = Counter(label for group in groups if not few & group.keys() for label in group)
        more = {label for label in everywhere if everywhere[label] < parts or free[label] < parts - 1} | few
        if more == few:
            return few
        few = more


def _attempt(
    groups: Groups, fractions: tuple[float, ...], totals: Counter[str], few: set[str], generator: np.random.Generator
) -> list[int]:
    parts = [0 if few & group.keys() else -1 for group in groups]
    missing = {label: [fraction * totals[label] for fraction in fractions] for label in totals}
    members: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        if parts[number] == 0:
            _put(group, 0, missing)
        for label in group:
            members[label].append(number)
    order = [int(number) for number in generator.permutation(len(groups))]
    rank = {number: position for position, number in enumerate(order)}
    # First one group in each part for the labels with the fewest groups, then the others where most is missing.
    for label in sorted(members, key=lambda label: (len(members[label]), label)):
        if label in few:
            continue
        for part in reversed(range(len(fractions))):
            if any(parts[number] == part for number in members[label]):
                continue
            if open_groups := [number for number in members[label] if parts[number] < 0]:
                number = min(open_groups, key=rank.__getitem__)
                parts[number] = part
                _put(groups[number], part, missing)
    for number in order:
        if parts[number] < 0:
            group = groups[number]
            parts[number] = max(
                range(len(fractions)),
                key=lambda part: sum(n * missing[label][part] / totals[label] ** 2 for label, n in group.items()),
            )
            _put(group, parts[number], missing)
    return parts


def _put(group: Counter[str], part: int, missing: dict[str, list[float]]) -> None:
    for label, images in group.items():
        missing[label][part] -= images


def _absent(groups: Groups, parts: list[int], count: int) -> set[str]:
    """The labels that are not in all `count` parts."""
    present: dict[str, set[int]] = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        for label in group:
            present[label].add(part)
    return {label for label, found in present.items() if len(found) < count}


def _cost(groups: Groups, parts: list[int], fractions: tuple[float, ...], totals: Counter[str]) -> float:
    missing = {label: [fraction * totals[label] for fraction in fractions] for label in totals}
    for group, part in zip(groups, parts, strict=True):
        _put(group, part, missing)
    return sum((images / totals[label]) ** 2 for label, left in missing.items() for images in left)


def split(annotations: pd.DataFrame, target: str, parameters: parameters.Split) -> tuple[pd.DataFrame, list[str]]:
    """Assign every image to a part: to the given one if the data set gives parts, else by `assign`.

    Args:
        annotations: the table that `annotate` writes.
        target: the column to learn.
        parameters: the section `split`.

    Returns:
        One row per image in the order of `annotations`: image, part (one of `PARTS` or unlabelled), label (empty where
        unlabelled), video; and the labels that are in train only.

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
    part = annotations["part"].where(labelled, UNLABELLED)
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


def counts(table: pd.DataFrame, few: list[str]) -> dict[str, object]:
    """The stage's metrics: images a part, labels, and what could not be split."""
    labelled = table[table["part"] != UNLABELLED]
    return {
        **{part: int((table["part"] == part).sum()) for part in (*PARTS, UNLABELLED)},
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
    write_csv(paths.SPLIT, table)
    # Which images, not which part: a new split does not decode and resize them again.
    names = annotations.loc[annotations["labelled"], "image"]
    write_text(paths.IMAGE_LIST, "".join(f"{name}\n" for name in names))
    numbers = counts(table, few)
    write_json(paths.SPLIT_METRICS, numbers)
    used = table["part"] != UNLABELLED
    given = sorted(set(annotations.loc[used, "part"]) - {""}, key=PARTS.index)
    if given:
        rest = [part for part in PARTS[1:] if part not in given]
        drawn = (
            f"; {' and '.join(rest)} drawn from train"
            if rest
            else f"; the section split of {paths.PARAMETERS} is not used"
        )
        print(f"split: the data gives {', '.join(given)}{drawn}")
    print("split:", ", ".join(f"{numbers[part]} {part}" for part in (*PARTS, UNLABELLED)))
    labelled = sum(bool(label) for label in table["label"])
    without = numbers["images_without_video"]
    if values.split.group == "video" and without:
        which = "no labelled image has a" if without == labelled else f"{without} labelled images have no"
        print(
            f"split: warning: {which} video or group; each counts as one of its own: the stage audit looks for near-copies"
        )
    if few and given:
        print(f"split: warning: no validation or test image has the label: {'; '.join(few)}")
    elif few:
        kind = "images" if without == labelled else f"{values.split.group}s"
        print(f"split: warning: in too few {kind} for every part, so in train only: {'; '.join(few)}")


if __name__ == "__main__":
    errors.run(main)
