"""What a data set says of its images to data/annotations.csv: one row per image that is present, in the data set's order.

Three layouts are read: MPII's, a folder for each label, and a table. See docs/data.md.
"""

import os
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd

from stages.common.annotations import folders, groups, matlab, table
from stages.common.images import layout
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError, printable
from stages.common.runtime.files import write_csv, write_json
from stages.common.runtime.lock import lock

SHOWN = 5  # kinds of skipped files in the line


def read(data: Path) -> folders.Found:
    """The images that a data set names, whether or not they are present, and which layout it has.

    Raises:
        UserError: no layout, two at once, or an error in the one found.
    """
    try:
        mpii, listed = layout.has_annotation_file(data), table.find(data)
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; expected a folder that can be read") from error
    if mpii and listed:
        raise UserError(
            f"{data} has two layouts: {listed.name} and MPII's {paths.MPII_ANNOTATIONS}; remove one of them"
        )
    if mpii:
        file = layout.annotation_file(data)
        return folders.Found(matlab.read(file), Counter(), "mpii", f"MPII's, {file.name}")
    if listed:
        rows = table.read(listed)
        unnamed = table.unnamed(data, set(rows["image"]))
        skipped = Counter({f"images not in {listed.name}": unnamed} if unnamed else {})
        return folders.Found(rows, skipped, "table", f"a table, {listed.name}")
    return folders.read(data)


def present(listed: pd.DataFrame, images: Path) -> pd.DataFrame:
    """The rows of `listed` whose image is in the folder `images`, each image once.

    Raises:
        UserError: there is no such image, or a link to a folder on the way to one.
    """
    for folder in sorted({images / parent for name in listed["image"] for parent in PurePosixPath(name).parents}):
        layout.refuse_linked_folder(folder)
    found = listed[[os.path.lexists(images / name) for name in listed["image"]]]
    if found.empty:
        first = f", as {listed['image'].iloc[0]}" if len(listed) else ""
        first += " (paths need / in place of \\)" if "\\" in first else ""
        raise UserError(
            f"{images} contains none of the {len(listed)} images that are listed{first}; expected paths below it"
        )
    return found.drop_duplicates("image").reset_index(drop=True)


def counts(listed: pd.DataFrame, kept: pd.DataFrame, skipped: int) -> dict[str, int]:
    """The stage's metrics: what the data set lists, and what is kept of it."""
    labelled = kept[kept["labelled"]]
    missing = listed["image"].nunique() - len(kept)
    return {
        "images": len(kept),
        "labelled": len(labelled),
        "unlabelled": len(kept) - len(labelled),
        **{
            name: labelled.loc[labelled[column] != "", column].nunique()
            for name, column in (("categories", "category"), ("activities", "activity"), ("videos", "video"))
        },
        "people": int(kept["people"].sum()),
        "missing_images": missing,
        "repeated_images": len(listed) - len(kept) - missing,
        "skipped_files": skipped,
    }


@lock("annotate")
def main() -> None:
    data = Path(parameters.load().data)
    found = read(data)
    print(printable(f"annotate: {data}: {found.layout}"))
    kept = present(found.table, layout.images_folder(data))
    if (file := data / groups.GROUPS).exists():
        kept, unknown = groups.merge(kept, file)
        print(
            f"annotate: {file}: images of one group stay in one part; skipped {unknown} rows that name no image of the data"
        )
    numbers = {"layout": found.kind, **counts(found.table, kept, found.skipped.total())}
    write_csv(paths.ANNOTATIONS, kept)
    write_json(paths.ANNOTATE_METRICS, numbers)
    print(
        f"annotate: {numbers['images']} images, {numbers['labelled']} labelled, {numbers['categories']} categories, "
        f"{numbers['activities']} activities"
    )
    if found.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.skipped.most_common(SHOWN))
        print(printable(f"annotate: skipped {found.skipped.total()} files: {kinds}"))
    if numbers["missing_images"]:
        print(f"annotate: warning: {numbers['missing_images']} listed images are missing: skipped")


if __name__ == "__main__":
    errors.run(main)
