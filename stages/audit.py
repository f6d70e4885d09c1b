"""Look at the data before anything is trained: near-copies, the labels in each part, and the sizes of the originals.

data/near_copies.csv has the pairs, data/groups.csv groups that a data set's folder accepts, plots/data.html the pictures.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.audit import leak, near_copies
from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import is_labelled, read_split, video_keys
from stages.common.images import layout
from stages.common.images.decoding import dimensions
from stages.common.report.data_page import Data, data_page
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError, short
from stages.common.runtime.files import read_json, write_csv, write_json, write_text
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import Parameters
from stages.common.runtime.progress import progress
from stages.common.runtime.workers import available_cores

STAGE = "audit"
SIDES = ("_1", "_2")  # the two images of a pair


def pairs_of(split: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """The near-copies among the images of `split`, those in two parts first.

    Returns:
        image, part, label and video of both images (image_1, image_2, …, str), similarity (float), mirrored and same_video
        (bool).
    """
    names = list(split["image"])
    with progress(len(names), STAGE, "image") as bar:
        small = near_copies.thumbnails(rows.read, names, bar.update)
    with progress(len(names), f"{STAGE}: compared", "image") as bar:
        found = near_copies.find(small, bar.update)
    both = [split.iloc[found[place]].reset_index(drop=True).add_suffix(side) for place, side in zip(("first", "second"), SIDES, strict=True)]  # fmt: skip
    table = pd.concat([*both, found[["similarity", "mirrored"]].round({"similarity": 3})], axis=1)
    keys = [video_keys(table[f"image{side}"], table[f"video{side}"]) for side in SIDES]
    table["same_video"] = keys[0] == keys[1]
    order = pd.DataFrame({"same": table["part_1"] == table["part_2"], "alike": -table["similarity"]})
    return table.loc[order.sort_values(["same", "alike"], kind="stable").index].reset_index(drop=True)


def groups_of(pairs: pd.DataFrame, images: pd.Series) -> pd.DataFrame:
    """The images that have near-copies: image, and a group, which has the name of its first image."""
    places = pd.Series(np.arange(len(images)), index=images)
    edges = pd.DataFrame({"first": places[pairs["image_1"]].to_numpy(), "second": places[pairs["image_2"]].to_numpy()})
    group = leak.groups(edges, len(images))
    having = np.flatnonzero(group >= 0)
    names = "copies of " + images.iloc[group[having]].to_numpy(dtype=object)
    return pd.DataFrame({"image": images.iloc[having].to_numpy(), "group": names})


def counts(pairs: pd.DataFrame, images: int) -> dict[str, int]:
    """The stage's metrics."""
    across = pairs[pairs["part_1"] != pairs["part_2"]]
    return {
        "images": images,
        "near_copies": len(pairs),
        "images_with_near_copies": len({*pairs["image_1"], *pairs["image_2"]}),
        "near_copies_across_parts": len(across),
        "near_copies_across_labels": int((pairs["label_1"] != pairs["label_2"]).sum()),
        "test_images_with_near_copies_in_training": len(leak.test_images_copied(pairs)),
    }


def _sizes(names: list[str], folder: Path) -> np.ndarray:
    """Width and height of the originals, upright, (images, 2) int."""

    def size(name: str) -> tuple[int, int]:
        try:
            return dimensions(folder / name)
        except OSError as error:
            raise UserError(
                f"{folder / name}: can't be read any more ({short(error)}); it was decoded before: run dvc repro again"
            ) from error

    parts = [names[start : start + 256] for start in range(0, len(names), 256)]
    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(pool.map(lambda part: [size(name) for name in part], parts))
    return np.array([each for part in found for each in part])


@lock(STAGE)
def main() -> None:
    values = parameters.load()
    rows = Rows(paths.RESIZED, "pixels")
    split = read_split()
    used = split[is_labelled(split) & split["image"].isin(rows.places)].reset_index(drop=True)
    pairs = pairs_of(used, rows)
    numbers = counts(pairs, len(used))
    sizes = _sizes(list(used["image"]), layout.images_folder(Path(values.data)))
    html = data_page(_data(values, used, pairs, numbers, sizes), rows.read)
    write_csv(paths.NEAR_COPIES, pairs)
    write_csv(paths.COPY_GROUPS, groups_of(pairs, used["image"]))
    write_json(paths.AUDIT_METRICS, numbers)
    write_text(paths.DATA_PAGE, html)
    print(
        f"{STAGE}: {numbers['near_copies']} pairs of near-copies among {len(used)} images, "
        f"{numbers['near_copies_across_parts']} in two parts, {numbers['near_copies_across_labels']} with two labels; see "
        f"{paths.DATA_PAGE}"
    )
    if numbers["test_images_with_near_copies_in_training"]:
        print(
            f"{STAGE}: warning: {numbers['test_images_with_near_copies_in_training']} test images have a near-copy in train "
            f"or validation; add the rows of {paths.COPY_GROUPS} to groups.csv in {values.data}, or remove copies where the "
            "data gives the parts"
        )


def _data(
    values: Parameters, used: pd.DataFrame, pairs: pd.DataFrame, numbers: dict[str, int], sizes: np.ndarray
) -> Data:
    return Data(
        name=values.data,
        target=values.target,
        annotate=read_json(paths.ANNOTATE_METRICS),
        resize=read_json(paths.RESIZE_METRICS),
        audit=numbers,
        images=used,
        pairs=pairs,
        sizes=sizes,
    )


if __name__ == "__main__":
    errors.run(main)
