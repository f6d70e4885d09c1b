"""Checkpoints: everything that the next epoch depends on, in one file that is written atomically."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stages.common.runtime.backend import keras
from stages.common.runtime.errors import is_system_fault, short
from stages.common.runtime.files import new_file, remove
from stages.common.training.distribution import is_first

Record = TypeVar("Record")


def save(model: keras.Model, record: dict[str, Any], path: Path, best_weights: list[np.ndarray]) -> None:
    """Write the weights, the state of the optimizer, the best weights so far and `record`, as JSON has it, to `path`.

    Of several processes the first one does that.

    Raises:
        UserError: the system refused to write.
    """
    if not is_first():
        return
    optimizer = [keras.ops.convert_to_numpy(variable) for variable in model.optimizer.variables]
    values = {"weights": model.get_weights(), "best": best_weights, "optimizer": optimizer}
    arrays = {f"{name} {number}": array for name, arrays in values.items() for number, array in enumerate(arrays)}
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, run=np.array(json.dumps(record)), **arrays)


def restore(
    model: keras.Model, path: Path, stage: str, check: Callable[[dict[str, Any]], Record]
) -> tuple[Record, list[np.ndarray]] | None:
    """Give a compiled model, whose optimizer is built, the state in `path`. A damaged file is removed, with a message.

    Args:
        model: as it was when the file was written.
        path: of the checkpoint; its name is that of the phase.
        stage: for messages.
        check: from the record as JSON has it to the record, or an exception.

    Returns:
        The record and the best weights; None without a whole file.
    """
    if not path.exists():
        return None
    try:
        return _restore(model, path, check)
    except Exception as error:  # zip, NumPy and JSON have many types for a damaged file
        if is_system_fault(error):
            raise
        remove(path)
        print(f"{stage}: discarded a damaged checkpoint ({short(error)}): phase {path.stem} starts again")
        return None


def _restore(
    model: keras.Model, path: Path, check: Callable[[dict[str, Any]], Record]
) -> tuple[Record, list[np.ndarray]]:
    counts = {"weights": len(model.weights), "best": len(model.weights), "optimizer": len(model.optimizer.variables)}
    with np.load(path, allow_pickle=False) as stored:
        weights, best, optimizer = (
            [stored[f"{name} {number}"] for number in range(count)] for name, count in counts.items()
        )
        record = check(json.loads(str(stored["run"])))
    expected = [*model.weights, *model.weights, *model.optimizer.variables]
    if [array.shape for array in (*weights, *best, *optimizer)] != [variable.shape for variable in expected]:
        raise ValueError("its arrays have other shapes than the model's")
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, optimizer, strict=True):
        variable.assign(value)
    return record, best
