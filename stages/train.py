"""Train one model by the recipe of its kind. The test part is never read here."""

import numpy as np
import pandas as pd

from stages.common.dataset.splits import images_of, read_split
from stages.common.networks.serialization import save
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.arguments import model_argument
from stages.common.runtime.backend import device, keras
from stages.common.runtime.files import write_csv, write_json
from stages.common.runtime.live import live_curves
from stages.common.runtime.parameters import MODELS, Pretrained, Scratch
from stages.common.runtime.resuming import code, fingerprint
from stages.common.training.distribution import distributed, is_first, resumable
from stages.common.training.recipe import Trained, recipe_of
from stages.common.training.trainer import Trainer


def main() -> None:
    name = model_argument("train", MODELS)
    stage = f"train-{name}"
    with distributed(stage):
        values = parameters.load()
        print(f"{stage}: on {device()}")
        _run(stage, name, getattr(values, name), values.seed)


def _run(stage: str, name: str, section: Scratch | Pretrained, seed: int) -> None:
    train = recipe_of(section)  # before code(), which lists what is loaded
    split = read_split()
    images_of(split, "validation", set(split["image"]))  # an edited split may have none
    folders = [folder for folder in (paths.RESIZED, paths.features(name)) if folder.is_dir()]
    inputs = fingerprint(file for folder in folders for file in sorted(folder.iterdir()))
    depends = seed, section.model_dump(), split.to_csv(), inputs
    with resumable(stage, paths.model_file(name), code(), device(), *depends) as folder:
        trainer = Trainer(stage, folder)
        if is_first():
            trainer.show = live_curves()
        trained = train(name, section, seed, split, trainer)
        model = with_probabilities(trained.whole(), name)
        if is_first():
            save(model, paths.model_file(name), trained.labels)
            _write_results(name, section, trained, trainer, model.count_params())


def with_probabilities(logits: keras.Model, name: str) -> keras.Model:
    """The model that is saved: images to probabilities instead of logits."""
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits.output)
    model = keras.Model(logits.input, probabilities, name=name)
    model.trainable = True
    return model


def _write_results(name: str, section: Scratch | Pretrained, trained: Trained, trainer: Trainer, size: int) -> None:
    # The epochs of a refit have no validation: their number is known before.
    curves = pd.DataFrame(trainer.epochs).dropna(subset="validation_macro_f1")
    write_csv(paths.curves(name), curves.round(6))
    best_epoch = int(np.argmax(curves["validation_macro_f1"])) + 1 if section.patience else len(curves)
    validation_macro_f1 = round(trained.validation_macro_f1, 6)
    write_json(paths.validation(name), {"validation_macro_f1": validation_macro_f1, "best_epoch": best_epoch})
    timing = {
        "seconds": round(trainer.seconds, 1),
        "epochs": len(trainer.epochs),
        "images": trainer.images,
        "parameters": size,
        "device": device(),
    }
    write_json(paths.train_timing(name), timing)


if __name__ == "__main__":
    errors.run(main)
