"""A table of images and labels: labels.csv, or the one other .csv file with these columns, in a data set's folder."""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.annotations.groups import GROUPS
from stages.common.annotations.labels import PARTS, check_spelling, image_name, label
from stages.common.annotations.text import header, read_csv
from stages.common.images import layout
from stages.common.runtime.errors import UserError

NAME = "labels.csv"
COLUMNS = "image, label (or category and activity), and perhaps group and part"


def find(data: Path) -> Path | None:
    """The table of the data set in `data`, if it has one.

    Raises:
        UserError: several tables, and none of them is labels.csv.
    """
    tables = [path for path in sorted(data.iterdir()) if path.suffix.lower() == ".csv" and path.is_file()]
    if named := [path for path in tables if path.name.lower() == NAME]:
        return named[0]
    found = [path for path in tables if path.name != GROUPS and _is_table(path)]
    if found and len(places := layout.image_folders(data)) > 1:
        raise UserError(
            f"{data} has two layouts: {found[0].name}, and images in folders ({', '.join(places[:3])}); rename the table to "
            f"{NAME} to use it, or remove it"
        )
    if len(found) > 1:
        raise UserError(
            f"{data} has several tables ({', '.join(path.name for path in found)}); rename the one to use to {NAME}"
        )
    return found[0] if found else None


def _is_table(path: Path) -> bool:
    columns, _ = header(path)
    return "image" in columns and bool({"label", "category", "activity"} & set(columns))


def read(path: Path) -> pd.DataFrame:
    """Read a table.

    Returns:
        One row per row of the file, in its order: image, category, activity (the same as category where there is a label),
        video (its group), people (0), labelled, part (empty where not given). All str, except people and labelled.

    Raises:
        UserError: not UTF-8, other columns, an image outside the folder, two labels of one image, labels that differ in
            spelling only, an unknown part, or parts of some images alone.
    """
    table = read_csv(path)
    kinds = [name for name in ("label", "category", "activity") if name in table]
    if "image" not in table or not kinds or ("label" in kinds and len(kinds) > 1):
        both = ", not both label and " + kinds[1] if len(kinds) > 1 and "image" in table else ""
        raise UserError(f"{path}: the columns are {', '.join(table.columns)}; expected {COLUMNS}{both}")
    if table.empty:
        raise UserError(f"{path}: no row below the header; expected one for each image")
    for kind in kinds:
        check_spelling(str(path), table[kind].unique())
    if "group" in table:
        check_spelling(str(path), table["group"].unique(), "groups")
    result = pd.DataFrame(
        {"image": [_image(text, line, path) for line, text in table["image"].items()]}, index=table.index
    )
    first, last = (table[kind].map(label) for kind in (kinds[0], kinds[-1]))
    result["category"], result["activity"] = first, last
    result["video"] = table["group"].map(label) if "group" in table else ""
    result["people"] = 0
    result["labelled"] = (first != "") | (last != "")
    result["part"] = _parts(table, result["labelled"], path) if "part" in table else ""
    _check_repeated(result, path)
    return result.reset_index(drop=True)


def unnamed(data: Path, named: set[str]) -> int:
    """The number of images below `data` that a table does not name."""
    return sum(str(path) not in named for path in layout.image_files(data))


def _image(text: str, line: Any, path: Path) -> str:
    name = image_name(text)
    if not layout.is_inside(name):
        raise UserError(
            f"{path}: the image of line {line} is {text!r}; expected a path below {path.parent}, as dog/1.jpg is"
        )
    return name


def _parts(table: pd.DataFrame, labelled: pd.Series, path: Path) -> pd.Series:
    texts = table["part"].map(label).str.lower()
    if (bad := texts[~texts.isin(["", *PARTS])]).size:
        raise UserError(f"{path}: the part of line {bad.index[0]} is {bad.iloc[0]!r}; expected {', '.join(PARTS)}")
    without = labelled & (texts == "")
    if without.any() and not without[labelled].all():
        raise UserError(
            f"{path}: line {without.idxmax()} has a label and no part, and others have one; expected a part for each "
            "labelled image, or for none"
        )
    return texts.map({**PARTS, "": ""})


def _check_repeated(table: pd.DataFrame, path: Path) -> None:
    rows = table.drop_duplicates(["image", "category", "activity", "video", "part"])
    if (twice := rows[rows["image"].duplicated(keep=False)]).size:
        name = twice["image"].iloc[0]
        first, second = twice.index[twice["image"] == name][:2]
        raise UserError(
            f"{path}: lines {first} and {second} say different things of image {name}; expected one label, group and part"
        )
