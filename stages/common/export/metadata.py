"""What a file that leaves the project says of itself: labels, licence, images, and where it comes from."""

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from stages.common.dataset.chunks import EXTRA, Rows
from stages.common.images.layout import has_annotation_file
from stages.common.prediction.classifier import Classifier
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError, short
from stages.common.runtime.parameters import MODELS
from stages.common.runtime.plain_yaml import parse_yaml
from stages.common.runtime.tracked import md5, recorded_md5

PROJECT = "What are they doing? Activities in photographs"
RESIZING = "Lanczos, of the upright RGB photograph (8 bits, transparency on white) to a square, without keeping its proportions"
RESEARCH, MIT, UNKNOWN = "research use only", "MIT", "unknown: that of the photographs that the model learned from"


class Origin(NamedTuple):
    """How a model of this repository was made, as the dvc.lock files say.

    Attributes:
        name: of the model.
        data: the parameter `data`.
        parameters: those of its stages, by dotted keys.
        split: the md5 of the table of its train, validation and test images.
        predictions: the md5 of the predictions that it made of the test part; empty: not known.
    """

    name: str
    data: str
    parameters: dict[str, Any]
    split: str
    predictions: str


def origin_of(file: Path) -> Origin | None:
    """How the model in `file` was made; None if it is not the one that the dvc.lock files tell of.

    Raises:
        UserError: a dvc.lock file can't be read.
    """
    names = [name for name in MODELS if file.resolve() == paths.model_file(name).resolve()]
    if not names:
        return None
    (name,), stages = names, _stages()
    try:
        train, split, annotate = stages[f"train-{name}"], stages["split"], stages["annotate"]
        chain = (
            (recorded_md5(train, "outs", paths.model_file(name)), md5(file)),
            (recorded_md5(train, "deps", paths.SPLIT), recorded_md5(split, "outs", paths.SPLIT)),
            (recorded_md5(split, "deps", paths.ANNOTATIONS), recorded_md5(annotate, "outs", paths.ANNOTATIONS)),
        )
        if any(one != other for one, other in chain):
            return None
        data = str(annotate["params"][str(paths.PARAMETERS)]["data"])
        before = ["sample"] if paths.same(data, paths.SAMPLE) else []
        used = {}
        for stage in (
            *before,
            "annotate",
            "split",
            "chunked-resize",
            f"pretrain-{name}",
            f"features-{name}",
            f"train-{name}",
        ):
            used.update(stages.get(stage, {}).get("params", {}).get(str(paths.PARAMETERS), {}))
    except KeyError:
        return None
    return Origin(name, data, used, chain[1][0], _predictions(stages.get(f"infer-{name}", {}), name, md5(file)))


def made_its_predictions(name: str) -> bool:
    """Whether the dvc.lock files say that the model of this name made the predictions of the test part that are there.

    Raises:
        UserError: a dvc.lock file can't be read.
    """
    file, predictions = paths.model_file(name), paths.predictions(name)
    if not (file.is_file() and predictions.is_file()):
        return False
    return _predictions(_stages().get(f"infer-{name}", {}), name, md5(file)) == md5(predictions)


def _stages() -> dict[str, Any]:
    """What the dvc.lock files say of each stage."""
    stages: dict[str, Any] = {}
    for lock in paths.LOCKS:
        if lock.exists():
            try:
                stages.update(parse_yaml(lock.read_bytes())["stages"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{lock}: not a lock file of DVC ({short(error)}); resolve the conflict, or git checkout {lock}"
                ) from error
    return stages


def _predictions(infer: dict[str, Any], name: str, model: str) -> str:
    try:
        of_this = recorded_md5(infer, "deps", paths.model_file(name)) == model
        return recorded_md5(infer, "outs", paths.predictions(name)) if of_this else ""
    except KeyError:
        return ""


def licence_of(origin: Origin | None) -> str:
    """`RESEARCH`, `MIT` or `UNKNOWN`: MPII, and models trained on it, are for research use only."""
    if origin is None:
        return UNKNOWN
    data = Path(origin.data)
    if paths.same(origin.data, paths.SAMPLE):
        own = origin.parameters.get("weights", "auto") in ("auto", "imagenet", "random") and not _learned_extra(origin)
        return MIT if own else UNKNOWN
    if paths.same(origin.data, paths.MPII) or (data.is_dir() and has_annotation_file(data)):
        return RESEARCH
    return UNKNOWN


def _learned_extra(origin: Origin) -> bool:
    """Whether an encoder may have learned from photographs of `pretrain.extra`, about which nothing is known."""
    if origin.name != "selfsupervised":
        return False
    folder = paths.UNLABELLED
    return not folder.is_dir() or any(name.startswith(EXTRA) for name in Rows(folder, "pixels").places)


def describe(classifier: Classifier) -> dict[str, Any]:
    """The metadata of an exported model: texts, the image's side in pixels, and the list of labels."""
    origin = origin_of(classifier.file)
    return {
        "project": PROJECT,
        "model": origin.name if origin else classifier.model.name,
        "model_md5": md5(classifier.file),
        "commit": commit(),
        "licence": licence_of(origin),
        "image_size": classifier.model.input_shape[1],
        "resizing": RESIZING,
        "pixels": "uint8, RGB, 0 to 255; scaling is inside",
        "labels": classifier.labels,
        "written_by": f"Keras {keras.version()} on {keras.backend.backend()}",
    }


def commit() -> str:
    """The commit of the current folder's repository, with -dirty if tracked files have changed since."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return "unknown"
    return ended.stdout.strip() if not ended.returncode else "unknown"
