"""The scores of predictions, with each video counted any number of times: what the bootstrap needs."""

import numpy as np
import pandas as pd

from stages.common.dataset.splits import video_keys
from stages.common.evaluation.predictions import occurring_labels, probabilities_of

# Of the predicted labels alone.
OF_LABELS = {
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}
# Of the probabilities of all labels. These differ by about 1e-6 between processors, and so may the order of two of them.
OF_PROBABILITIES = {"top_5_accuracy": "top-5 accuracy", "mean_average_precision": "mean average precision"}
METRICS = OF_LABELS | OF_PROBABILITIES
# Digits in files, so few that differences between processors do not show.
DIGITS = dict.fromkeys(OF_LABELS, 6) | dict.fromkeys(OF_PROBABILITIES, 3)
TOP = 5
BLOCK = 256  # images of a label at a time


class Scorer:
    """Scores of one model's predictions.

    - macro F1, weighted F1: as `scores.f1` defines them;
    - accuracy;
    - balanced accuracy: the mean of the labels' recalls;
    - top-5 accuracy: the images whose label is among the five most probable ones;
    - mean average precision: the mean over the labels of the area under the curve of precision over recall, as
      scikit-learn's `average_precision_score` defines it (without interpolation).

    Means over labels are those over the labels that occur.

    Args:
        predictions: a table with the columns image, video, label and prediction; an image without video is one of its own.
            With the columns of the labels' probabilities it has all of `METRICS`, else those of `OF_LABELS`.
        labels: all that occur; None: those that occur in `predictions`.
    """

    def __init__(self, predictions: pd.DataFrame, labels: list[str] | None = None) -> None:
        # Any order of the rows gives the same videos in the same order: the same draws of a bootstrap.
        keys = video_keys(predictions["image"], predictions["video"])
        predictions = predictions.assign(key=keys).sort_values(["key", "image"], kind="stable")
        self.counts = tally(predictions, labels or occurring_labels(predictions))
        self.columns, self.probabilities = probabilities_of(predictions)
        self.names = METRICS if self.columns else OF_LABELS
        self.truth = predictions["label"].to_numpy()
        # The rows of a video are neighbours: this is its first one.
        self.first = np.flatnonzero(~predictions["key"].duplicated().to_numpy())

    @property
    def videos(self) -> int:
        return len(self.counts)

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Scores of which each video counts so many times.

        Args:
            times: (n, videos).

        Returns:
            (n, metrics), in the order of `names`.
        """
        times = times.astype(np.float32)  # whole numbers, whose sums are exact up to 2^24
        flat = self.counts.reshape(self.videos, -1)
        found = scores((times @ flat.astype(np.float32)).astype(np.float64).reshape(-1, *self.counts.shape[1:]))
        if not self.columns:
            return found
        return np.column_stack([found, self._top(times), self._average_precision(times)])

    def _top(self, times: np.ndarray) -> np.ndarray:
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :TOP]
        hit = (np.array(self.columns)[order] == self.truth[:, None]).any(axis=1)
        hits, images = (self._by_video(values[:, None]) for values in (hit, np.ones(len(hit))))
        share: np.ndarray = (times @ hits)[:, 0].astype(np.float64) / (times @ images)[:, 0]
        return share

    def _by_video(self, values: np.ndarray) -> np.ndarray:
        """Sums over the images of each video, (images, n) to (videos, n) float32."""
        sums: np.ndarray = np.add.reduceat(values.astype(np.float32), self.first, axis=0)
        return sums

    def _average_precision(self, times: np.ndarray) -> np.ndarray:
        """The mean over the labels of sum over a label's images of the precision at each one's probability / its images."""
        total, labels = np.zeros(len(times)), np.zeros(len(times))
        for label in np.unique(self.truth):
            positive = self.truth == label
            # A label that the model does not know is the least probable one everywhere.
            values = np.zeros(len(positive))
            if label in self.columns:
                values = self.probabilities[:, self.columns.index(label)]
            places = np.flatnonzero(positive)
            video_of = np.searchsorted(self.first, places, side="right") - 1
            precisions, images = np.zeros(len(times)), np.zeros(len(times))
            for start in range(0, len(places), BLOCK):
                part, own = places[start : start + BLOCK], times[:, video_of[start : start + BLOCK]]
                above = values[:, None] >= values[part]
                all_above, positive_above = (
                    times @ self._by_video(each) for each in (above, above & positive[:, None])
                )
                precision = np.divide(positive_above, all_above, out=np.zeros_like(own), where=own > 0)
                precisions += (own * precision).sum(axis=1, dtype=np.float64)
                images += own.sum(axis=1, dtype=np.float64)
            total += np.divide(precisions, images, out=np.zeros_like(images), where=images > 0)
            labels += images > 0
        mean: np.ndarray = total / labels
        return mean


def tally(predictions: pd.DataFrame, labels: list[str]) -> np.ndarray:
    """For each video and label: images predicted correctly, images with that label, images predicted as that label.

    Returns:
        (videos, 3, labels) float64, the videos in the order of their keys.
    """
    videos, names = pd.factorize(video_keys(predictions["image"], predictions["video"]), sort=True)
    places = {label: place for place, label in enumerate(labels)}
    truth = predictions["label"].map(places).to_numpy()
    predicted = predictions["prediction"].map(places).to_numpy()
    counts = np.zeros((len(names), 3, len(labels)))
    np.add.at(counts[:, 0], (videos, truth), truth == predicted)
    np.add.at(counts[:, 1], (videos, truth), 1)
    np.add.at(counts[:, 2], (videos, predicted), 1)
    return counts


def scores(counts: np.ndarray) -> np.ndarray:
    """`OF_LABELS` of counts as `tally` makes them: (..., 3, labels) to (..., 4)."""
    correct, images, predicted = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    f1 = 2 * correct / np.maximum(images + predicted, 1)
    occurs, total = images > 0, images.sum(axis=-1)
    values: np.ndarray = np.stack(
        [
            (f1 * occurs).sum(axis=-1) / occurs.sum(axis=-1),
            (f1 * images).sum(axis=-1) / total,
            correct.sum(axis=-1) / total,
            (correct / np.maximum(images, 1)).sum(axis=-1) / occurs.sum(axis=-1),
        ],
        axis=-1,
    )
    return values
