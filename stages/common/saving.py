"""Models as .keras files: the same bytes for the same model, with the labels inside."""

import json
import re
import unicodedata
import zipfile
from pathlib import Path

from stages.common.backend import keras
from stages.common.files import new_file
from stages.common.problem import Problem

METADATA = "metadata.json"
# A thousand labels of a thousand letters: what is larger is made to fill the memory.
MOST_METADATA = 1 << 20


def save(model: keras.Model, path: Path, labels: list[str]) -> None:
    """Write `model` to `path`; the file also holds the names of its outputs.

    Raises:
        Problem: the system refused to write.
    """
    with new_file(path) as temporary:
        whole = temporary.with_suffix(".keras")
        try:
            model.save(whole)
            with zipfile.ZipFile(whole) as source, zipfile.ZipFile(temporary, "w") as target:
                for name in sorted(source.namelist()):
                    target.writestr(zipfile.ZipInfo(name), _settled(name, source.read(name), labels))
        finally:
            whole.unlink(missing_ok=True)


def _settled(name: str, content: bytes, labels: list[str]) -> bytes:
    if name == "config.json":
        return _renumbered(content)
    if name != METADATA:
        return content
    # In a file of Keras's own: for any further file it unpacks the whole archive into a temporary folder.
    metadata = json.loads(content) | {"date_saved": "1980-01-01@00:00:00", "labels": labels}
    return json.dumps(metadata, ensure_ascii=False).encode()


def _renumbered(config: bytes) -> bytes:
    """Keras's ids of shared objects are addresses in memory: number them in the order in which they appear."""
    numbers: dict[bytes, int] = {}
    return re.sub(
        rb'("shared_object_id": )(\d+)',
        lambda match: match[1] + str(numbers.setdefault(match[2], len(numbers))).encode(),
        config,
    )


def load(path: Path) -> tuple[keras.Model, list[str]]:
    """The model in `path`, not compiled, and the names of its outputs.

    Raises:
        Problem: no such file, not one that `save` wrote, or one that would run code of its own.
    """
    if not path.is_file():
        raise Problem(f"{path}: no such model; train it with dvc repro, or name an existing one")
    try:
        labels = _read_labels(path)
    except Exception as error:  # of a file that can be anything
        reason = str(error) if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
        raise Problem(
            f"{path}: not a model of this project ({reason}); expected a .keras file that a train stage wrote"
        ) from error
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        shapes = [tensor.shape for tensor in (*model.inputs, *model.outputs)]
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise Problem(
            f"{path}: not a model that is whole and safe to load ({text}); train it again with dvc repro"
        ) from error
    if len(shapes) != 2 or len(shapes[0]) != 4 or None in shapes[0][1:] or shapes[0][1:] != (shapes[0][1],) * 2 + (3,):
        raise Problem(f"{path}: a model from {shapes[:-1]} to {shapes[-1:]}; expected one from square RGB images")
    return model, labels


def _read_labels(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(METADATA).file_size > MOST_METADATA:
            raise TypeError(f"its {METADATA} is larger than {MOST_METADATA} bytes")
        labels = json.loads(archive.read(METADATA))["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("its labels are no list of names")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in "".join(labels)):
        raise TypeError("its labels hold control characters")
    return labels
