"""The models that the page offers, and what each says of a photograph."""

import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.demo.record import Examples, Record
from stages.common.explanation.heat_maps import Explained, explained, heat_maps
from stages.common.explanation.overlay import overlay
from stages.common.explanation.pictures import photograph
from stages.common.export.metadata import made_its_predictions
from stages.common.images.decoding import decode
from stages.common.networks.model_file import load_labels
from stages.common.prediction.classifier import for_inference, load_classifier
from stages.common.report.gallery import jpeg
from stages.common.runtime import parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError

LABELS = 5  # shown
LEARNED = "{} may have learned from this image: it is not known to be in its test part."
QUALITY = 90  # of JPEGs that the page shows


class Choice(NamedTuple):
    """A model by the name or the file that the user gave, and the model of this project that it is, if any."""

    name: str
    known: str | None


class Loaded(NamedTuple):
    """A model in memory, with what there is to explain it."""

    network: keras.Model
    labels: list[str]
    parts: Explained | None
    why_no_parts: str
    record: Record | None
    lock: threading.Lock

    def tested_on(self, image: str) -> bool:
        """Whether an image is known to be in the test part of this model."""
        return self.record is not None and image in set(self.record.table["image"])


def choices(name: str | None) -> list[Choice]:
    """The model `name`, by default that of params.yaml, and after it all others that are trained.

    Raises:
        UserError: there is no such model.
    """
    name = name or parameters.load().model
    files = {known: paths.model_file(known) for known in parameters.MODELS}
    load_labels(files.get(name, Path(name)))
    same = (known for known, file in files.items() if file.resolve() == Path(name).resolve())
    first = Choice(name, name if name in files else next(same, None))
    return [first, *(Choice(known, known) for known, file in files.items() if file.is_file() and known != first.known)]


class Models:
    """The models of `choices`, each loaded when it is first asked for. Threads may share it."""

    def __init__(self, offered: list[Choice]) -> None:
        self.offered = offered
        self._loaded: dict[int, Loaded] = {}
        self._loading = threading.Lock()

    def get(self, number: int) -> Loaded:
        """The model at this place of the choices.

        Raises:
            UserError: it can't be loaded.
        """
        if number not in self._loaded:
            with self._loading:
                if number not in self._loaded:
                    self._loaded[number] = _load(self.offered[number])
        return self._loaded[number]

    def examples(self) -> Examples | None:
        """Images of the test part of the first model, if that and the pixels are there.

        Raises:
            UserError: they can't be read.
        """
        record = _record(self.offered[0])
        return Examples(record.table) if record and any(paths.RESIZED.glob("*.h5")) else None

    def answer(self, number: int, content: bytes, example: str | None = None) -> dict[str, Any]:
        """What a model says of the content of an image file, as the page needs it; `example`: the name of the image.

        The file is written for the decoder, into a folder that no other user of the machine can read, and removed.

        Raises:
            DecodeError: it can't be decoded.
            UserError: the model can't be loaded.
        """
        model = self.get(number)
        with tempfile.TemporaryDirectory(prefix="demo-") as folder:
            path = Path(folder, "photograph")
            path.write_bytes(content)
            pixels = decode(path, model.network.input_shape[1])[None]
            shown = photograph(path)
        with model.lock:
            probabilities = model.network.predict_on_batch(pixels)[0]
            best = np.argsort(-probabilities, kind="stable")[:LABELS]
            heat = heat_maps(model.parts, pixels)[0, best[0]] if model.parts else None
        record = model.record.bin(float(probabilities[best[0]])) if model.record else None
        return {
            "model": self.offered[number].name,
            "labels": [{"label": model.labels[place], "probability": float(probabilities[place])} for place in best],
            "record": str(record) if record else None,
            "share_correct": record.correct / record.images if record and record.images else None,
            "photograph": _picture(shown),
            "heat_map": None if heat is None else _picture(overlay(shown, heat)),
            "why_no_heat_map": model.why_no_parts,
            "note": None if example is None or model.tested_on(example) else LEARNED.format(self.offered[number].name),
        }


def _load(choice: Choice) -> Loaded:
    classifier = load_classifier(choice.name)
    network, parts, why = for_inference(classifier.model), None, ""
    try:
        parts = explained(classifier.model, choice.name)
    except UserError as error:
        why = str(error)
    record = _record(choice)
    if record and record.labels != classifier.labels:
        raise UserError(
            f"{paths.predictions(str(choice.known))}: not of the labels of {classifier.file}; run dvc repro"
        )
    # The first call compiles: better now than while somebody waits.
    black = np.zeros((1, *network.input_shape[1:]), np.uint8)
    network.predict_on_batch(black)
    if parts:
        heat_maps(parts, black)
    return Loaded(network, classifier.labels, parts, why, record, threading.Lock())


def _record(choice: Choice) -> Record | None:
    # Of an earlier model, or another split, they would tell nothing of this one.
    if choice.known and made_its_predictions(choice.known):
        return Record(paths.predictions(choice.known))
    return None


def _picture(pixels: np.ndarray) -> str:
    return f"data:image/jpeg;base64,{jpeg(pixels, QUALITY)}"
