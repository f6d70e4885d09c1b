"""What can be read of a model's file without Keras, which takes seconds to import: its labels, and its head if it is linear."""

import io
import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from scipy.special import softmax

from stages.common.runtime.errors import UserError
from stages.common.runtime.tracked import refuse_edited

METADATA = "metadata.json"
# A thousand labels of a thousand characters; a larger file is made to fill the memory.
MAX_METADATA = 1 << 20
# Weights hardly compress: a member of the archive that expands more than this is made to fill the memory.
MAX_GROWTH = 20
# Names of layers: the one whose output the head takes, the one that standardises it, and the last one before softmax.
FEATURES = "features"
STANDARDISE = "head_standardise"
LOGITS = "logits"


def load_labels(path: Path) -> list[str]:
    """The names of the outputs of the model in `path`.

    Raises:
        UserError: no such file, one that was edited, or not one that a train stage wrote.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such model; make it with dvc repro, or name an existing one")
    refuse_edited(path)
    try:
        return _read_labels(path)
    except Exception as error:  # the file can contain anything
        raise _not_ours(path, error) from error


def _not_ours(path: Path, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
    return UserError(f"{path}: not a model of this project ({reason}); expected a .keras file that a train stage wrote")


def _read_labels(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > MAX_GROWTH * member.compress_size + MAX_METADATA:
                raise TypeError(f"its {member.filename} expands to {member.file_size:,} bytes")
        if archive.getinfo(METADATA).file_size > MAX_METADATA:
            raise TypeError(f"its {METADATA} is larger than {MAX_METADATA} bytes")
        labels = json.loads(archive.read(METADATA))["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("its labels are not a list of names")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in "".join(labels)):
        raise TypeError("its labels contain control characters")
    return labels


class LinearHead(NamedTuple):
    """Head softmax: features, (n, channels), to probabilities, (n, labels), all float64.

    It computes what the model's layers after `FEATURES` do, without the rounding of float32.
    """

    mean: np.ndarray
    variance: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        logits = (features - self.mean) / np.sqrt(self.variance) @ self.weights + self.bias
        values: np.ndarray = softmax(logits, axis=1)
        return values


def load_linear_head(path: Path) -> tuple[LinearHead, list[str]]:
    """The head of a model with head softmax, and the names of its outputs.

    Raises:
        UserError: no such file, one that was edited, or not one that a train stage wrote for this head.
    """
    labels = load_labels(path)
    try:
        head = _read_linear_head(path)
    except Exception as error:  # the file can contain anything
        raise _not_ours(path, error) from error
    if len(head.bias) != len(labels):
        raise UserError(
            f"{path}: a head of {len(head.bias)} outputs with {len(labels)} labels; train it again with dvc repro"
        )
    return head, labels


def _read_linear_head(path: Path) -> LinearHead:
    with zipfile.ZipFile(path) as archive:
        layers: list[dict[str, Any]] = json.loads(archive.read("config.json"))["config"]["layers"]
        content = io.BytesIO(archive.read("model.weights.h5"))
    names = [layer["config"]["name"] for layer in layers]
    if FEATURES not in names:
        raise TypeError(f"it has no layer {FEATURES}")
    head = layers[names.index(FEATURES) + 1 :]
    if [layer["class_name"] for layer in head] != ["Normalization", "Dense", "Softmax"]:
        raise TypeError(f"its layers after {FEATURES} are {', '.join(names[names.index(FEATURES) + 1 :])}")
    standardise, dense, _ = (layer["config"] for layer in head)
    with h5py.File(content) as stored:
        groups = [group["vars"] for group in stored["layers"].values() if "vars" in group]
        (values,) = (group for group in groups if group.attrs.get("name") == dense["name"])
        weights, bias = (values[key][:].astype(np.float64) for key in ("0", "1"))
    mean, variance = (np.array(standardise[key]).ravel() for key in ("mean", "variance"))
    return LinearHead(mean, variance, weights, bias)
