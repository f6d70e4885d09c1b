"""data/annotations.csv to data/split.csv: train, validation, test, unlabelled; stratified by label, grouped by video."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd

from stages.common.dataset.splits import PARTS, UNLABELLED, video_keys
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import reading, write_csv, write_json, write_text
from stages.common.runtime.lock import lock

ATTEMPTS = 20

Groups = list[Counter[str]]


def assign(groups: Groups, fractions: tuple[float, float, float], seed: int) -> tuple[list[int], list[str]]:
    """Assign each group to a part so that each label's images are divided as `fractions` says.

    Several random orders are tried and the one closest to the fractions is kept. A label with too few groups for three
    parts goes to train with all of them.

    Args:
        groups: images by label, one counter a group.
        fractions: of train, validation and test.
        seed: of the random orders.

    Returns:
        The part of each group (an index into `PARTS`), and the labels that are in train alone, sorted.
    """
    generator = np.random.default_rng(seed)
    totals: Counter[str] = Counter()
    for group in groups:
        totals.update(group)
    few = _too_few(groups, set())
    while True:
        best: tuple[float, list[int]] | None = None
        failures: Counter[str] = Counter()
        for _ in range(ATTEMPTS):
            parts = _attempt(groups, fractions, totals, few, generator)
            absent = _absent(groups, parts) - few
            failures.update(absent)
            cost = _cost(groups, parts, fractions, totals)
            if not absent and (best is None or cost < best[0]):
                best = cost, parts
        if best is not None:
            return best[1], sorted(few)
        few = _too_few(groups, few | {max(sorted(failures), key=failures.__getitem__)})


def _too_few(groups: Groups, few: set[str]) -> set[str]:
    """`few`, and every label that can't be in three parts: under three groups, or under two that no label of `few` keeps in train."""
    while True:
        everywhere = Counter(label for group in groups for label in group)
        free = Counter(label for group in groups if not few & group.keys() for label in group)
        more = {label for label in everywhere if everywhere[label] < len(PARTS) or free[label] < len(PARTS) - 1} | few
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
        for part in (2, 1, 0):
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
                range(3),
                key=lambda part: sum(n * missing[label][part] / totals[label] ** 2 for label, n in group.items()),
            )
            _put(group, parts[number], missing)
    return parts


def _put(group: Counter[str], part: int, missing: dict[str, list[float]]) -> None:
    for label, images in group.items():
        missing[label][part] -= images


def _absent(groups: Groups, parts: list[int]) -> set[str]:
    """The labels that are not in all three parts."""
    present: dict[str, set[int]] = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        for label in group:
            present[label].add(part)
    return {label for label, found in present.items() if len(found) < len(PARTS)}


def _cost(groups: Groups, parts: list[int], fractions: tuple[float, ...], totals: Counter[str]) -> float:
    missing = {label: [fraction * totals[label] for fraction in fractions] for label in totals}
    for group, part in zip(groups, parts, strict=True):
        _put(group, part, missing)
    return sum((images / totals[label]) ** 2 for label, left in missing.items() for images in left)


def split(annotations: pd.DataFrame, target: str, parameters: parameters.Split) -> tuple[pd.DataFrame, list[str]]:
    """Assign every image to a part.

    Args:
        annotations: the table that `annotate` writes.
        target: the column to learn.
        parameters: the section `split`.

    Returns:
        One row per image in the order of `annotations`: image, part (one of `PARTS` or unlabelled), label (empty where
        unlabelled), video; and the labels that are in train only.

    Raises:
        UserError: fewer than two labels, or no label with enough groups to be in all parts.
    """
    labelled = annotations["labelled"] & (annotations[target] != "")
    labels = annotations[target].where(labelled, "")
    if (found := labels[labelled].nunique()) < 2:
        names = f"one label only ({labels[labelled].iloc[0]!r})" if found else "no label at all"
        other = "activity" if target == "category" else "category"
        raise UserError(
            f"target {target} has {names} in {paths.ANNOTATIONS}; expected two or more: try target={other} or more data"
        )
    images, videos = annotations["image"], annotations["video"].astype("string").fillna("")
    groups_of_images = video_keys(images, videos) if parameters.group == "video" else images
    numbers, _ = pd.factorize(groups_of_images[labelled])
    groups: Groups = [Counter() for _ in range(numbers.max() + 1)]
    for number, label in zip(numbers, labels[labelled], strict=True):
        groups[number][label] += 1
    fractions = (1 - parameters.validation - parameters.test, parameters.validation, parameters.test)
    parts, few = assign(groups, fractions, parameters.seed)
    if len(few) == found:
        raise UserError(
            f"{len(groups)} {parameters.group}s with {labelled.sum()} labelled images of {found} labels are too few: expected "
            f"at least one label in 3 {parameters.group}s or more, one each for train, validation and test"
        )
    part = np.full(len(annotations), UNLABELLED, dtype=object)
    part[labelled.to_numpy()] = [PARTS[parts[number]] for number in numbers]
    columns = {"image": annotations["image"], "part": part, "label": labels, "video": annotations["video"]}
    return pd.DataFrame(columns), few


def counts(table: pd.DataFrame, few: list[str]) -> dict[str, object]:
    """The stage's metrics: images a part, labels, and what could not be split."""
    labelled = table[table["part"] != UNLABELLED]
    return {
        **{part: int((table["part"] == part).sum()) for part in (*PARTS, UNLABELLED)},
        "labels": labelled["label"].nunique(),
        "labels_in_train_alone": len(few),
        "images_without_video": int(labelled["video"].isna().sum()),
    }


@lock("split")
def main() -> None:
    values = parameters.load()
    with reading(paths.ANNOTATIONS):
        annotations = pd.read_csv(
            paths.ANNOTATIONS,
            keep_default_na=False,
            dtype={"image": "str", "category": "str", "activity": "str", "video": "Int64"},
            na_values={"video": ""},
        )
    table, few = split(annotations, values.target, values.split)
    write_csv(paths.SPLIT, table)
    # Which images, not which part: a new split does not decode and resize them again.
    names = annotations.loc[annotations["labelled"], "image"]
    write_text(paths.IMAGE_LIST, "".join(f"{name}\n" for name in names))
    numbers = counts(table, few)
    write_json(paths.SPLIT_METRICS, numbers)
    print("split:", ", ".join(f"{numbers[part]} {part}" for part in (*PARTS, UNLABELLED)))
    if values.split.group == "video" and numbers["images_without_video"]:
        print(
            f"split: warning: {numbers['images_without_video']} labelled images have no video; each counts as a video of its own"
        )
    if few:
        print(f"split: warning: in too few {values.split.group}s for every part, so in train only: {'; '.join(few)}")


if __name__ == "__main__":
    errors.run(main)
