"""groups.csv in a data set's folder: further images that must not be divided, such as near-copies."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.common.annotations.labels import check_spelling, image_name, label
from stages.common.annotations.text import read_csv
from stages.common.dataset.splits import video_keys
from stages.common.runtime.errors import UserError

GROUPS = "groups.csv"
COLUMNS = ("image", "group")


def merge(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, int]:
    """Join the videos that have images in one group of the file `path`: what is connected is one video.

    Args:
        table: with the columns image and video, str.
        path: a CSV file with the columns image and group. An image may be in several groups.

    Returns:
        The table with new videos, and the number of the file's images that are not in the table.

    Raises:
        UserError: other columns, or none of the images is in the table.
    """
    listed = read_csv(path)
    if not set(COLUMNS) <= set(listed.columns):
        raise UserError(f"{path}: the columns are {', '.join(listed.columns)}; expected {' and '.join(COLUMNS)}")
    check_spelling(str(path), listed["group"].unique(), "groups")
    listed = pd.DataFrame({"image": listed["image"].map(image_name), "group": listed["group"].map(label)})
    listed = listed[(listed["group"] != "") & (listed["image"] != "")]
    if listed.empty:
        return table, 0
    rows = pd.Series(np.arange(len(table)), index=table["image"]).reindex(listed["image"])
    known = rows.notna().to_numpy()
    if not known.any():
        raise UserError(f"{path} names none of the {len(table)} images; expected names as in {table['image'].iloc[0]}")
    keys, _ = pd.factorize(video_keys(table["image"], table["video"]))
    groups, names = pd.factorize(listed.loc[known, "group"])
    videos = keys[rows[known].to_numpy(int)]
    nodes = keys.max() + 1 + len(names)
    edges = coo_array((np.ones(len(groups), bool), (videos, keys.max() + 1 + groups)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    # Of several groups in one component the first one gives the name.
    of_component = dict(zip(component[keys.max() + 1 :][::-1], names[::-1], strict=True))
    joined = pd.Series(component[keys], index=table.index).map(of_component)
    videos_now = ("group " + joined).where(joined.notna(), table["video"])
    return table.assign(video=videos_now), int((~known).sum())
