"""Images whose label is most probably wrong, by confident learning.

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021: an image is suspicious if
it is predicted as another label with at least the probability that images of that label have on average. The predictions must
be of models that have not seen the image: those of the test part, or out of fold.
"""

import numpy as np
import pandas as pd

from stages.common.evaluation.predictions import OF, probabilities_of

COLUMNS = ["image", "label", "suggested", "probability_of_label", "probability_of_suggested"]


def mean_prediction(repeats: list[pd.DataFrame]) -> pd.DataFrame:
    """The first of several tables of predictions of the same images, with the mean probabilities of all."""
    columns = [name for name in map(str, repeats[0]) if name.startswith(OF)]
    return repeats[0].assign(
        **{name: np.mean([table[name].to_numpy() for table in repeats], axis=0) for name in columns}
    )


def suspicious_labels(predictions: pd.DataFrame) -> pd.DataFrame:
    """The suspicious images, the most suspicious one first: by how much the suggested label is the more probable one.

    Args:
        predictions: a table of predictions with the probabilities of all labels.

    Returns:
        `COLUMNS`: image, its label and the suggested one, and their probabilities.
    """
    labels, probabilities = probabilities_of(predictions)
    place = pd.Index(labels).get_indexer(pd.Index(predictions["label"]))
    own = probabilities[np.arange(len(place)), place]
    # A label without images has no threshold that could be reached.
    thresholds = np.full(len(labels), np.inf)
    for number in np.unique(place):
        thresholds[number] = own[place == number].mean()
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    confident[np.arange(len(place)), place] = -1.0
    suggested = confident.argmax(1)
    highest = confident[np.arange(len(place)), suggested]
    table = pd.DataFrame(
        {
            "image": predictions["image"].to_numpy(),
            "label": predictions["label"].to_numpy(),
            "suggested": np.array(labels, object)[suggested],
            "probability_of_label": own,
            "probability_of_suggested": highest,
        }
    )
    found = table[highest > own]
    margin = found["probability_of_suggested"] - found["probability_of_label"]
    order = pd.DataFrame({"margin": -margin, "image": found["image"]}).sort_values(["margin", "image"]).index
    ordered: pd.DataFrame = found.loc[order, COLUMNS]
    return ordered.reset_index(drop=True)
