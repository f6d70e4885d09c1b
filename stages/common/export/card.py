"""A folder for a hub of models: the model, its labels, and a card with its results, in Hugging Face's format.

Nothing is pushed: the user looks at it and does that.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import yaml

from stages.common.dataset.splits import read_split, video_keys
from stages.common.evaluation.metrics import METRICS
from stages.common.evaluation.predictions import read_predictions
from stages.common.evaluation.summary import summary
from stages.common.export.metadata import MIT, PROJECT, RESEARCH, Origin, commit, licence_of, origin_of
from stages.common.prediction.classifier import Classifier
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import destination, new_folder
from stages.common.runtime.parameters import auto_weights, flatten
from stages.common.runtime.tracked import md5

README, LABELS = "README.md", "labels.json"
MPII_SITE = "http://human-pose.mpi-inf.mpg.de"

# The hub's names; `other` needs a name and a link.
LICENCES: dict[str, dict[str, str]] = {
    MIT: {"license": "mit"},
    RESEARCH: {"license": "other", "license_name": "research-use-only", "license_link": MPII_SITE},
}
DATA = {
    MIT: ("synthetic", "Synthetic drawings of people and scenes: no photographs, so it is good for trying out only."),
    RESEARCH: (
        "mpii-human-pose",
        f"Photographs of the [MPII Human Pose]({MPII_SITE}) data set, frames of YouTube videos.",
    ),
}
OWN_DATA = ("own", "Photographs of the person who trained the model: their licence is not known here.")
# The hub's names of kinds of metrics.
KINDS = {"macro_f1": "f1", "weighted_f1": "f1", "accuracy": "accuracy", "balanced_accuracy": "accuracy"}

EXAMPLE = f"""\
import json
import keras{{more}}
import numpy as np
from PIL import Image, ImageOps

model = keras.saving.load_model("{paths.MODEL_FILE}", compile=False)
labels, size = json.load(open("{LABELS}", encoding="utf-8")), model.input_shape[1]
photograph = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixels = np.asarray(photograph.resize((size, size), Image.Resampling.LANCZOS))
probabilities = model.predict(pixels[None], verbose=0)[0]
print(labels[probabilities.argmax()], probabilities.max())
"""


def write(classifier: Classifier, out: Path) -> str:
    """Write the folder.

    Args:
        classifier: a model that was trained here.
        out: as the user named it; links are followed.

    Returns:
        What was written, as one line.

    Raises:
        UserError: its data, parameters, split or predictions are not known, or the system refused to write.
    """
    origin = origin_of(classifier.file)
    if (
        origin is None
        or not _is(paths.SPLIT, origin.split)
        or not _is(paths.predictions(origin.name), origin.predictions)
    ):
        raise UserError(
            f"{classifier.file}: its data, split or predictions do not match dvc.lock, and a card has its results; "
            "expected a model that was trained here: run dvc repro"
        )
    card, out = _card(classifier, origin), destination(out)
    with new_folder(out) as folder:
        shutil.copyfile(classifier.file, folder / paths.MODEL_FILE)
        labels = json.dumps(classifier.labels, indent=2, ensure_ascii=False)
        (folder / LABELS).write_text(labels + "\n", encoding="utf-8")
        (folder / README).write_text(card, encoding="utf-8")
        if md5(folder / paths.MODEL_FILE) != md5(classifier.file):
            raise UserError(f"{classifier.file} changed while it was copied; run this again")
    return f"export: {out.name}: {', '.join(sorted((README, LABELS, paths.MODEL_FILE)))}; licence: {licence_of(origin)}; nothing was pushed"


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and md5(path) == digest


def _card(classifier: Classifier, origin: Origin) -> str:
    predictions = read_predictions(paths.predictions(origin.name))
    scores, parts = summary(predictions), read_split()["part"].value_counts()
    licence = licence_of(origin)
    kind, data = DATA.get(licence, OWN_DATA)
    parameters = _public(origin)
    hub = any(type(layer).__module__.startswith("keras_hub") for layer in classifier.model.layers)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  (Markdown)
    )
    return environment.get_template("card.md").render(
        header=yaml.safe_dump(_header(origin, scores, licence, kind), sort_keys=False, allow_unicode=True),
        title=f"Activities in photographs: {origin.name}",
        project=PROJECT,
        labels=classifier.labels,
        example=EXAMPLE.format(more="\nimport keras_hub" if hub else ""),
        test=len(predictions),
        apart=parameters.get("split.group") == "video",
        videos=video_keys(predictions["image"], predictions["video"]).nunique(),
        rows=_rows(scores),
        calibration=scores["expected_calibration_error"],
        data=data,
        train=parts.get("train", 0),
        validation=parts.get("validation", 0),
        refit=parameters.get(f"{origin.name}.refit", False),
        backbone=_start(origin, licence),
        licence=licence,
        name=origin.name,
        commit=commit(),
        md5=md5(classifier.file),
        parameters=yaml.safe_dump(parameters, allow_unicode=True),
        citation=paths.CITATION.read_text(encoding="utf-8"),
    )


def _header(origin: Origin, scores: dict[str, Any], licence: str, kind: str) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    metrics = [
        {
            "type": KINDS.get(name, name),
            "name": "{} (95 % interval {} to {})".format(METRICS[name], *scores[f"{name}_interval"]),
            "value": scores[name],
        }
        for name in METRICS
        if name in scores
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": kind, "type": kind, "split": "test"},
        "metrics": metrics,
    }
    return {
        "library_name": "keras",
        **LICENCES.get(licence, {"license": "unknown"}),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "activity-recognition", "keras"],
        "metrics": sorted({metric["type"] for metric in metrics}),
        "model-index": [{"name": f"activities-{origin.name}", "results": [result]}],
    }


def _rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": METRICS[name],
            "value": f"{scores[name]:.3f}",
            **dict(zip(("low", "high"), (f"{end:.3f}" for end in scores[f"{name}_interval"]), strict=True)),
        }
        for name in METRICS
        if name in scores
    ]


def _start(origin: Origin, licence: str) -> str:
    """The weights that the network had before it was trained, if others have made them."""
    network = str(origin.parameters.get(f"{origin.name}.name", origin.name))
    weights = origin.parameters.get("weights", "random")
    if weights == "auto":
        weights = auto_weights(network, uses_sample=licence == MIT)
    return "" if weights == "random" else f"pretrained weights of {Path(network).name}"


def _public(origin: Origin) -> dict[str, Any]:
    """The parameters, without paths of the user's machine."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in flatten(origin.parameters).items()
        if key != "data"
    }
