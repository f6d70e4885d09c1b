"""What follows from near-copies: their groups, and the test images that a model has nearly seen."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.common.runtime.files import reading

# Columns of names in the table of near-copies, for both images of a pair.
TEXTS = [f"{name}_{one}" for name in ("image", "part", "label", "video") for one in (1, 2)]


def read_pairs(path: Path) -> pd.DataFrame:
    """The table of near-copies that the stage audit writes.

    Raises:
        UserError: it can't be read.
    """
    with reading(path):
        return pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(TEXTS, str))


def groups(pairs: pd.DataFrame, images: int) -> np.ndarray:
    """The first image of the group of near-copies in which each image is, (images,) int; -1 for those without near-copies."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs["first"], pairs["second"])), shape=(images, images))
    _, component = connected_components(edges, directed=False)
    _, first, inverse, count = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    return np.where(count[inverse] > 1, first[inverse], -1)


def test_images_copied(pairs: pd.DataFrame) -> set[str]:
    """The test images that have a near-copy in train or validation, itself or through other near-copies.

    Equal images are paired with the first of them alone, so direct pairs are not enough. Validation counts because a refit
    trains on it.

    Args:
        pairs: with the columns image and part of both images, image_1, image_2, part_1, part_2.
    """
    columns = [pairs[[f"image_{one}", f"part_{one}"]].set_axis(["image", "part"], axis=1) for one in (1, 2)]
    both = pd.concat(columns, ignore_index=True)
    numbers, _ = pd.factorize(both["image"])
    edges = pd.DataFrame({"first": numbers[: len(pairs)], "second": numbers[len(pairs) :]})
    group = pd.Series(groups(edges, len(both))[numbers])
    leaked = (both["part"] != "test").groupby(group).transform("any")
    return set(both.loc[leaked & (both["part"] == "test"), "image"])
