"""Chunk files: HDF5 files of some rows each, read row by row."""

import math
import os
import resource
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

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
    with h5py.File(path, "r") as file:
        return _names(file)


def read(path: Path, dataset: str) -> tuple[list[str], np.ndarray]:
    """The images' names and all rows of one dataset of one chunk."""
    with h5py.File(path, "r") as file:
        return _names(file), file[dataset][:]


def _names(file: h5py.File) -> list[str]:
    return [name.decode() for name in file[NAMES][:]]


class Rows:
    """The rows of one dataset over all chunks of a folder, found by image name and read one by one: memory stays flat.

    Raises:
        Problem: a chunk file has no such dataset, or not as `write` writes it.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        self.places: dict[str, tuple[str, int]] = {}
        for path in paths(folder):
            with h5py.File(path, "r") as file:
                if dataset not in file:
                    raise Problem(f"{path} holds no {dataset}; run dvc repro to make them")
                stored = file[dataset]
                if len(stored) and stored.id.get_offset() is None:
                    raise Problem(
                        f"{path}: {dataset} do not lie in one piece; make it again: remove its folder and run dvc repro"
                    )
                self.shape: tuple[int, ...] = stored.shape[1:]
                self.dtype: np.dtype = stored.dtype
                size, start = stored.dtype.itemsize * math.prod(self.shape), stored.id.get_offset() or 0
                self.places.update((name, (str(path), start + row * size)) for row, name in enumerate(_names(file)))

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __len__(self) -> int:
        return len(self.places)

    def read(self, names: list[str]) -> np.ndarray:
        """The rows of `names`, in their order: (len(names), *shape) of the dataset's dtype.

        Raises:
            Problem: a chunk file ends too early.
        """
        # From where HDF5 says that the rows lie: 3 times (images) to 50 times (pooled features) as fast as through h5py.
        values = np.empty((len(names), *self.shape), self.dtype)
        for row, name in zip(values, names, strict=True):
            path, start = self.places[name]
            if os.preadv(_open(path).fileno(), [row], start) != row.nbytes:
                raise Problem(f"{path}: ends within {name}; make it again: remove its folder and run dvc repro")
        return values


# A random order asks for every chunk again and again; opening one takes ten times as long as reading a row.
_granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)


@lru_cache(maxsize=(1024 if _granted == resource.RLIM_INFINITY else _granted) // 2)
def _open(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)
