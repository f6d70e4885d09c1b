"""The test images that a model has nearly seen."""

from pathlib import Path

import pandas as pd

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


def test_images_copied(pairs: pd.DataFrame) -> set[str]:
    """The test images that have a near-copy in train or validation: a refit trains on both.

    Args:
        pairs: with the columns image and part of both images, image_1, image_2, part_1, part_2.
    """
    found: set[str] = set()
    for one, two in ((1, 2), (2, 1)):
        leaked = (pairs[f"part_{one}"] == "test") & (pairs[f"part_{two}"] != "test")
        found |= set(pairs.loc[leaked, f"image_{one}"])
    return found
