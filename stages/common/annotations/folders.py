"""Photographs in a folder for each label, in one or two levels, and in folders for given parts above them."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages.common.annotations.groups import GROUPS
from stages.common.annotations.labels import PARTS, check_spelling, label
from stages.common.images import layout
from stages.common.runtime.errors import UserError

UNLABELLED = ("unlabelled", "unlabeled")


class Found(NamedTuple):
    """The images of a data set, what else is in its folder, and its layout: one of mpii, table, folders, and in words."""

    table: pd.DataFrame
    skipped: Counter[str]
    kind: str
    layout: str


def read(data: Path) -> Found:
    """The images of `data` with the names of their folders as labels.

    DATA/label/…, or DATA/category/activity/… if every image with a label is at least two folders deep. Folders with the
    names of parts above them (as `PARTS`) give the parts; in a folder `unlabelled` no image has a
    label. With one level of labels, the label is both category and activity.

    Returns:
        One row per image: image (its path below `data`), category, activity, video (empty), people (0), labelled, part
        (empty where not given); and the number of files that were skipped, by reason.

    Raises:
        UserError: no image in a label's folder, parts beside labels, labels that differ in spelling only, or a name that a
            text file can't hold.
    """
    images, skipped = layout.scan(data, GROUPS)
    parts = _given_parts(data, {path.parts[0] for path in images if len(path.parts) > 1})
    inner = {path: path.parts[1 if path.parts[0] in parts else 0 : -1] for path in images}
    no_folder = [path for path, folders in inner.items() if not folders]
    skipped.update({"in no label's folder": len(no_folder)} if no_folder else {})
    labelled = {path: folders for path, folders in inner.items() if folders and folders[0].lower() not in UNLABELLED}
    if not labelled:
        raise UserError(f"{data} has no image in a label's folder; {layout.EXPECTED}")
    two = all(len(folders) > 1 for folders in labelled.values())
    if blank := [path for path, folders in labelled.items() if not all(map(label, folders[: 1 + two]))]:
        raise UserError(f"{data}: the folder of {blank[0]} has a blank name; expected a label: rename it")
    for level in range(1 + two):
        check_spelling(str(data), {folders[level] for folders in labelled.values()})
    rows = []
    for path, folders in inner.items():
        if folders:
            names = folders if path in labelled else ("", "")
            category, activity = label(names[0]), label(names[1] if two else names[0])
            rows.append((str(path), category, activity, "", 0, path in labelled, parts.get(path.parts[0], "")))
    table = pd.DataFrame(rows, columns=list(layout.COLUMNS))
    kinds = "category/activity" if two else "label"
    shown = f"a folder for each {kinds}{', in folders for given parts' if parts else ''}"
    if not two and any(len(folders) > 1 for folders in labelled.values()):
        direct = next(path for path, folders in labelled.items() if len(folders) == 1)
        shown += f"; folders below are no labels, as {direct} is directly in one"
    return Found(table, skipped, "folders", shown)


def _given_parts(data: Path, folders: set[str]) -> dict[str, str]:
    """The part of each first folder; nothing if those are labels."""
    parts = {name: PARTS[name.lower()] for name in folders if name.lower() in PARTS}
    others = sorted(name for name in folders - parts.keys() if name.lower() not in UNLABELLED)
    if not parts or (others and ("train" not in parts.values() or len(set(parts.values())) == 1)):
        return {}
    if "train" not in parts.values():
        raise UserError(
            f"{data} has the parts {', '.join(sorted(parts))} and no folder train; expected one, with labels in it"
        )
    if others:
        raise UserError(
            f"{data} has folders of parts ({', '.join(sorted(parts))}) beside {others[0]!r}; expected either parts with "
            "labels in them, or labels alone: move it into a part, or out of the data"
        )
    return parts
