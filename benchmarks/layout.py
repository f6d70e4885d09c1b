"""A folder of photographs a label, in MPII's layout."""

from pathlib import Path

import numpy as np
import scipy.io

from stages.common.runtime import paths


def as_mpii(folder: Path, out: Path) -> Path:
    """A folder a label, as MPII's layout in `out`: links, and an annotation file in which no image has a video."""
    images = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    annolist = np.empty((1, len(images)), dtype=[(field, object) for field in ("image", "annorect", "vididx")])
    act = np.empty((len(images), 1), dtype=[(field, object) for field in ("cat_name", "act_name", "act_id")])
    (out / paths.MPII_IMAGES).mkdir(parents=True)
    for row, path in enumerate(images):
        name = f"{row:05d}{path.suffix}"
        (out / paths.MPII_IMAGES / name).symlink_to(path)
        annolist[0, row] = ({"name": name}, np.zeros((0, 0)), np.zeros((0, 0)))
        act[row, 0] = ("all", path.parent.name, 1.0)
    scipy.io.savemat(out / paths.MPII_ANNOTATIONS, {"RELEASE": {"annolist": annolist, "act": act}})
    return out
