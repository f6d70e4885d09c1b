"""The labels that may be wrong, with pictures, as one HTML page that needs nothing else."""

from pathlib import Path

import pandas as pd

from stages.common.report import gallery
from stages.common.report.template import render

TEMPLATE = Path(__file__).with_name("suspicious.html")
SHOWN = 120


def suspicious_page(issues: pd.DataFrame, images: int, data: str, model: str, read: gallery.Read) -> str:
    """One HTML page. The same bytes for the same arguments.

    Args:
        issues: the table of `suspicious_labels`.
        images: the number of those that were looked at.
        data: the folder.
        model: whose predictions they are.
        read: returns the pixels of images by their names, (n, size, size, 3) uint8.
    """
    shown = gallery.suspicious(issues, gallery.Budget(read), SHOWN)
    return render(TEMPLATE, issues=len(issues), images=images, data=data, model=model, shown=shown, side=gallery.SIDE)
