"""The encoder of the model selfsupervised, from the images of the train part and those without labels.

No validation or test image is among them, labelled or not.
"""

import pandas as pd

from stages.common.dataset.chunks import Rows
from stages.common.networks.serialization import save
from stages.common.pretraining.pretrainer import Done, images_to_learn_from, pretrain
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.backend import device, keras
from stages.common.runtime.files import read_lines, write_csv, write_json
from stages.common.runtime.live import live_curves
from stages.common.runtime.parameters import Pretrain, SelfSupervised
from stages.common.runtime.resuming import code, fingerprint
from stages.common.training.distribution import distributed, is_first, resumable

MODEL = "selfsupervised"
STAGE = f"pretrain-{MODEL}"
COLUMNS = ("epoch", "loss", "invariance", "covariance", "spread")


@distributed(STAGE)
def main() -> None:
    values = parameters.load()
    _run(values.selfsupervised, values.pretrain, values.seed)


def _run(section: SelfSupervised, how: Pretrain, seed: int) -> None:
    rows = Rows(paths.RESIZED, "pixels", paths.UNLABELLED)
    images = images_to_learn_from(rows, read_lines(paths.PRETRAINING_LIST), STAGE)
    print(f"{STAGE}: {len(images)} images, on {device()}")
    inputs = fingerprint(file for folder in (paths.RESIZED, paths.UNLABELLED) for file in sorted(folder.iterdir()))
    depends = seed, section.pool, section.filters, how.model_dump(exclude={"extra"}), images, inputs
    with resumable(STAGE, paths.ENCODER, code(), device(), *depends) as folder:
        show = [live_curves()] if is_first() else []
        encoder, done = pretrain(rows, images, section, how, seed, STAGE, folder, *show)
        if is_first():
            _write_results(encoder, done, len(images))


def _write_results(encoder: keras.Model, done: Done, images: int) -> None:
    save(encoder, paths.ENCODER, [])
    write_csv(paths.PRETRAINING_CURVES, pd.DataFrame(done.epochs, columns=list(COLUMNS)).round(6))
    timing = {"seconds": round(done.seconds, 1), "epochs": len(done.epochs), "images": images}
    write_json(paths.pretrain_timing(MODEL), timing)


if __name__ == "__main__":
    errors.run(main)
