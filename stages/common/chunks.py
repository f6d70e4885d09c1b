"""Chunk files: HDF5 files of some rows each, read row by row."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from stages.common.files import new_file
from stages.common.problem import Problem

NAMES = "image"


def write(path: Path, images: list[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one chunk: the images' names and, for each dataset, one row an image. Uncompressed and contiguous.

    Raises:
        Problem: the system refused to write.
    """
    # In memory first: on a full disk HDF5 fails again and again while it closes its file.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.create_dataset(NAMES, data=np.array(images, dtype=object), dtype=h5py.string_dtype())
        for dataset, values in arrays.items():
            file.create_dataset(dataset, data=values)
        file.flush()
        content = file.id.get_file_image()
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def paths(folder: Path) -> list[Path]:
    """The chunk files in `folder`, in order.

    Raises:
        Problem: there are none.
    """
    if not (found := sorted(folder.glob("*.h5"))):
        raise Problem(f"{folder} holds no chunk files; run dvc repro to make them")
    return found


def names(path: Path) -> list[str]:
    """The images of one chunk, in the order of its rows."""
    return [name.decode() for name in _open(path)[NAMES][:]]


def read(path: Path, dataset: str) -> tuple[list[str], np.ndarray]:
    """The images' names and all rows of one dataset of one chunk."""
    return names(path), _open(path)[dataset][:]


class Rows:
    """The rows of one dataset over all chunks of a folder, found by image name and read one by one: memory stays flat."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.dataset = dataset
        self.places: dict[str, tuple[Path, int]] = {}
        for path in paths(folder):
            file = _open(path)
            self.places.update((name, (path, row)) for row, name in enumerate(names(path)))
            self.shape: tuple[int, ...] = file[dataset].shape[1:]
            self.dtype: np.dtype = file[dataset].dtype

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def read(self, names: list[str]) -> np.ndarray:
        """The rows of `names`, in their order: (len(names), *shape) of the dataset's dtype."""
        # h5py's fancy indexing is 17 to 160 times slower than this loop.
        values = np.empty((len(names), *self.shape), self.dtype)
        for position, name in enumerate(names):
            path, row = self.places[name]
            _open(path)[self.dataset].read_direct(values, np.s_[row], np.s_[position])
        return values


# Fewer than a process may have open, whatever the number of chunks.
@lru_cache(maxsize=256)
def _open(path: Path) -> h5py.File:
    return h5py.File(path, "r")
