"""Chunk files: HDF5 files of some rows each, read row by row."""

import math
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from stages.common.runtime.errors import UserError, is_system_fault, short
from stages.common.runtime.files import new_file

NAMES = "image"
# Before the names of images of `pretrain.extra`: no name that a data set gives has two slashes.
EXTRA = "extra//"
AGAIN = "remove its folder and run dvc repro to make it again"


def write(path: Path, images: list[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one chunk: the images' names and, for each dataset, one row per image. Uncompressed and contiguous.

    Raises:
        UserError: the system refused to write.
    """
    # In memory first: on a full disk HDF5 fails repeatedly while it closes its file.
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
        UserError: there are none.
    """
    if not (found := sorted(folder.glob("*.h5"))):
        raise UserError(f"{folder} contains no chunk files; make them with dvc repro")
    return found


def names(path: Path) -> list[str]:
    """The images of one chunk, in the order of its rows.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        return _names(file)


def check(path: Path, dataset: str) -> None:
    """Raise a `UserError` if a chunk file is damaged, or has not one row of the dataset per image."""
    with _opened(path) as file:
        if len(file[dataset]) != len(file[NAMES]):
            raise UserError(f"{path}: {len(file[dataset])} rows of {dataset}, {len(file[NAMES])} images; {AGAIN}")


def read(path: Path, dataset: str) -> tuple[list[str], np.ndarray]:
    """The images' names and all rows of one dataset of one chunk.

    Raises:
        UserError: the file is damaged, or has no such dataset.
    """
    with _opened(path) as file:
        return _names(file), file[dataset][:]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:  # h5py names neither the file nor what is wrong in plain words
        if is_system_fault(error):
            raise
        raise UserError(f"{path}: damaged ({short(error)}); {AGAIN}") from error


def _names(file: h5py.File) -> list[str]:
    return [name.decode() for name in file[NAMES][:]]


class Rows:
    """The rows of one dataset over all chunks of some folders, found by image name and read one by one: memory stays flat.

    Raises:
        UserError: a chunk file is damaged, lacks the dataset, or is not laid out as `write` does it.
    """

    def __init__(self, folder: Path, dataset: str, *more: Path) -> None:
        self.places: dict[str, tuple[str, int]] = {}
        for path in (path for place in (folder, *more) for path in paths(place)):
            with _opened(path) as file:
                if dataset not in file:
                    raise UserError(f"{path} contains no {dataset}; make them with dvc repro")
                stored = file[dataset]
                if self.places and (stored.shape[1:], stored.dtype) != (self.shape, self.dtype):
                    raise UserError(f"{path}: {dataset} of {stored.shape[1:]}, others have {self.shape}; {AGAIN}")
                if len(stored) and stored.id.get_offset() is None:
                    raise UserError(f"{path}: {dataset} are not contiguous; {AGAIN}")
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
            UserError: a chunk file ends too early.
        """
        # At the offsets that HDF5 gives: 3 times (images) to 50 times (pooled features) as fast as through h5py.
        values = np.empty((len(names), *self.shape), self.dtype)
        for row, name in zip(values, names, strict=True):
            path, start = self.places[name]
            # Held while it is read: if two threads open it at once, the cache keeps the file of one.
            file = _open(path)
            if os.preadv(file.fileno(), [row], start) != row.nbytes:
                raise UserError(f"{path}: ends within {name}; {AGAIN}")
        return values


# A random order asks for every chunk again and again; opening one takes ten times as long as reading a row.
_max_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)


@lru_cache(maxsize=(1024 if _max_open == resource.RLIM_INFINITY else _max_open) // 2)
def _open(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)
