"""Models as .keras files: the same bytes for the same model, with the names of the labels inside."""

import importlib.util
import json
import math
import re
import zipfile
from pathlib import Path

from stages.common.networks.model_file import FEATURES, METADATA, load_labels
from stages.common.runtime.backend import keras, weights_not_drawn
from stages.common.runtime.errors import UserError, short
from stages.common.runtime.files import new_file

# Values of one image in a layer's output: a hostile file can ask for more than the memory has. VGG16 at 1024 pixels has 2^26.
MAX_VALUES = 1 << 26


def save(model: keras.Model, path: Path, labels: list[str]) -> None:
    """Write `model` and the names of its outputs to `path`, atomically.

    Raises:
        UserError: the system refused to write.
    """
    with new_file(path) as temporary:
        saved = temporary.with_suffix(".keras")
        try:
            model.save(saved)
            with zipfile.ZipFile(saved) as source, zipfile.ZipFile(temporary, "w") as target:
                for name in sorted(source.namelist()):
                    target.writestr(zipfile.ZipInfo(name), _deterministic(name, source.read(name), labels))
        finally:
            saved.unlink(missing_ok=True)


def _deterministic(name: str, content: bytes, labels: list[str]) -> bytes:
    if name == "config.json":
        return _renumbered(content)
    if name != METADATA:
        return content
    # In a file that Keras itself writes: for any further file it extracts the whole archive to a temporary folder.
    metadata = json.loads(content) | {"date_saved": "1980-01-01@00:00:00", "labels": labels}
    return json.dumps(metadata, ensure_ascii=False).encode()


def _renumbered(config: bytes) -> bytes:
    """Keras's ids of shared objects are memory addresses: number them in order of appearance."""
    numbers: dict[bytes, int] = {}
    return re.sub(
        rb'("shared_object_id": )(\d+)',
        lambda match: match[1] + str(numbers.setdefault(match[2], len(numbers))).encode(),
        config,
    )


def load(path: Path) -> tuple[keras.Model, list[str]]:
    """The model in `path`, not compiled, and the names of its outputs.

    Raises:
        UserError: no such file, not one that `save` wrote, or one that would run its own code.
    """
    labels = load_labels(path)
    if importlib.util.find_spec("keras_hub") is None and _uses_hub(path):
        raise UserError(f"{path}: a network of KerasHub; pip install -r requirements-hub.txt")
    try:
        _check_size(path)
        with weights_not_drawn():
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        shapes = [tensor.shape for tensor in (*model.inputs, *model.outputs)]
    except Exception as error:
        raise UserError(
            f"{path}: not a model that is complete and safe to load ({short(error, 200)}); train it again with dvc repro"
        ) from error
    if len(shapes) != 2 or len(shapes[0]) != 4 or None in shapes[0][1:] or shapes[0][1:] != (shapes[0][1],) * 2 + (3,):
        raise UserError(f"{path}: a model from {shapes[:-1]} to {shapes[-1:]}; expected one from square RGB images")
    return model, labels


def _check_size(path: Path) -> None:
    """Raise a `ValueError` if building the model would allocate much more than the file's size, or huge outputs."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    repeated = [layer["name"] for layer in config["config"]["layers"] if len(layer["inbound_nodes"]) > 1]
    # In this scope variables have shapes and no values.
    with keras.StatelessScope(initialize_variables=False):
        skeleton = keras.saving.deserialize_keras_object(config, safe_mode=True)
    nested = [layer for layer in skeleton.layers if isinstance(layer, keras.Model)]
    foreign = [layer.name for layer in nested if type(layer).__module__.split(".")[0] != "keras_hub"]
    if repeated or foreign:
        raise ValueError(f"{(repeated + foreign)[0]} is a model or a layer that is used twice; expected a flat model")
    weights = sum(math.prod(variable.shape) for variable in skeleton.variables)
    if 4 * weights > 2 * path.stat().st_size:
        raise ValueError(f"it asks for {weights:,} weights, more than the file contains")
    layers = [*skeleton.layers, *(inner for layer in nested for inner in layer.layers)]
    shapes = [tensor.shape[1:] for layer in layers for tensor in keras.tree.flatten(layer.output)]
    largest = max((math.prod(shape) for shape in shapes if None not in shape), default=0)
    if largest > MAX_VALUES:
        raise ValueError(f"a layer has {largest:,} values per image; expected at most {MAX_VALUES:,}")


def _uses_hub(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return b'"keras_hub>' in archive.read("config.json")


def head_of(model: keras.Model) -> keras.Model:
    """The part of a whole model after its layer `FEATURES`: features to the model's output.

    Raises:
        UserError: the model has no such layer.
    """
    if FEATURES not in (layer.name for layer in model.layers):
        raise UserError(f"the model {model.name} has no layer {FEATURES}; train it again with dvc repro")
    return keras.Model(model.get_layer(FEATURES).output, model.output)
