"""The images worth a look: the most confident mistakes and the least confident hits."""

import pandas as pd

from stages.common.dataset.splits import video_keys

SHOWN = 12  # of each kind, over all labels


def mistakes_and_hits(predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mistakes, most confident first, and the hits, least confident first, with one image of each video.

    Args:
        predictions: a table with the columns image, video, label, prediction and probability.
    """
    order = predictions.sort_values(["probability", "image"], ascending=[False, True])
    hit = order["label"] == order["prediction"]
    # The other frames of a video look alike.
    videos = video_keys(order["image"], order["video"])
    mistakes, hits = (rows[~videos[rows.index].duplicated()] for rows in (order[~hit], order[hit].iloc[::-1]))
    return mistakes, hits
