"""Images whose label is most probably wrong.

An image is suspicious if another label is predicted. It is the more suspicious, the less probable its own label is, compared
with the images of that label on average: the threshold of confident learning (Northcutt, Jiang and Chuang, Confident Learning:
Estimating Uncertainty in Dataset Labels, JAIR 2021), as a ratio, so that labels which are hard for the model do not come first.
The predictions must be of models that have not seen the image: those of the test part, or out of fold.
"""

import numpy as np
import pandas as pd

from stages.common.evaluation.predictions import OF, probabilities_of

COLUMNS = ["image", "label", "suggested", "probability_of_label", "probability_of_suggested", "quality"]


def mean_prediction(repeats: list[pd.DataFrame]) -> pd.DataFrame:
    """The first of several tables of predictions of the same images, with the mean probabilities of all."""
    columns = [name for name in map(str, repeats[0]) if name.startswith(OF)]
    table = repeats[0].copy()
    table[columns] = np.mean([repeat[columns].to_numpy() for repeat in repeats], axis=0)
    return table


def suspicious_labels(predictions: pd.DataFrame) -> pd.DataFrame:
    """The images for which another label is predicted, the most suspicious one first.

    Args:
        predictions: a table of predictions with the probabilities of all labels.

    Returns:
        `COLUMNS`: image, its label and the predicted one, their probabilities, and the quality of the label: its
        probability, divided by the mean of that probability over all images with this label.
    """
    labels, probabilities = probabilities_of(predictions)
    place = pd.Index(labels).get_indexer(pd.Index(predictions["label"]))
    rows = np.arange(len(place))
    own = pd.Series(probabilities[rows, place])
    suggested = probabilities.argmax(1)
    table = pd.DataFrame(
        {
            "image": predictions["image"].to_numpy(),
            "label": predictions["label"].to_numpy(),
            "suggested": np.array(labels, object)[suggested],
            "probability_of_label": own,
            "probability_of_suggested": probabilities[rows, suggested],
            "quality": (own / own.groupby(place).transform("mean")).fillna(0.0),  # never probable at all
        },
        columns=COLUMNS,
    )
    found: pd.DataFrame = table[suggested != place]
    return found.sort_values(["quality", "image"]).reset_index(drop=True)
