"""What the chosen model's most confident mistakes and least confident hits rest on: models/MODEL/heat_maps.h5.

The page shows them. They are a stage of their own, as the page needs no Keras, which takes seconds to import.
"""

import numpy as np
import pandas as pd

from stages.common.dataset import chunks
from stages.common.evaluation.predictions import read_predictions
from stages.common.explanation.examples import SHOWN, mistakes_and_hits
from stages.common.explanation.heat_maps import Explained, NoMapsError, explained, heat_maps
from stages.common.networks.serialization import load
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.lock import lock


def evidence(parts: Explained, labels: list[str], rows: pd.DataFrame, read: chunks.Rows) -> dict[str, np.ndarray]:
    """The evidence for the predicted and for the true label of each image.

    Args:
        parts: the model.
        labels: names of its outputs.
        rows: with the columns image, label and prediction.
        read: the images, (size, size, 3) uint8 each.

    Returns:
        `predicted` and `true`, each (rows, height, width) float32.
    """
    found: dict[str, list[np.ndarray]] = {"predicted": [], "true": []}
    for image, label, prediction in rows[["image", "label", "prediction"]].itertuples(index=False):
        (heat,) = heat_maps(parts, read.read([image]))
        for kind, name in (("predicted", prediction), ("true", label)):
            found[kind].append(heat[labels.index(name)])
    height, width = parts.to_maps.output_shape[1:3]
    return {kind: np.array(maps, np.float32).reshape(-1, height, width) for kind, maps in found.items()}


@lock("explain")
def main() -> None:
    name = parameters.load().model
    model, labels = load(paths.model_file(name))
    mistakes, hits = (rows.head(SHOWN) for rows in mistakes_and_hits(read_predictions(paths.predictions(name))))
    shown = pd.concat([mistakes, hits])
    try:
        maps = evidence(explained(model, name), labels, shown, chunks.Rows(paths.RESIZED, "pixels"))
    except NoMapsError as error:
        print(f"explain: {error}")
        shown, maps = shown.head(0), {kind: np.empty((0, 1, 1), np.float32) for kind in ("predicted", "true")}
    else:
        print(f"explain: heat maps of {len(mistakes)} mistakes and {len(hits)} hits of {name}")
    chunks.write(paths.heat_maps(name), list(shown["image"]), maps)


if __name__ == "__main__":
    errors.run(main)
