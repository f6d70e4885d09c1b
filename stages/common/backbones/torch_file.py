"""Reads tensors from a file of PyTorch's format before version 1.6, without PyTorch and without running its code."""

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from stages.common.runtime.errors import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True}


class _Tensor(NamedTuple):
    """Where a tensor lies: the key of its storage, its first element, and its shape and strides in elements."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


# What a pickle may name. Anything else could run code.
GLOBALS: dict[str, Callable[..., Any] | str] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.FloatStorage": "<f4",
    "torch.LongStorage": "<i8",
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (found := GLOBALS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}; allowed are {', '.join(GLOBALS)}")
        return found

    def persistent_load(self, pid: Any) -> str:
        _, dtype, key, *_ = pid
        self.dtypes[key] = dtype
        return str(key)


def read_tensors(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, float32 or int64.

    Args:
        path: a .pth file that `torch.save` of a version before 1.6 wrote.
        sha256: of the file, in hexadecimal.

    Raises:
        UserError: it is another file, or not a state dict of float32 and int64 tensors.
    """
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(f"{path} has SHA-256 {found}; expected {sha256}: install its package again")
    try:
        return _parsed(io.BytesIO(content))
    except Exception as error:  # the file can contain anything
        raise UserError(f"{path}: not a file of PyTorch tensors ({type(error).__name__}: {error})") from error


def _parsed(file: BinaryIO) -> dict[str, np.ndarray]:
    head = [_Unpickler(file).load() for _ in range(3)]
    if head[:2] != [MAGIC, PROTOCOL] or not SYSTEM.items() <= head[2].items():
        raise pickle.UnpicklingError("it does not begin as one")
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    storages = {key: _storage(file, unpickler.dtypes[key]) for key in _Unpickler(file).load()}
    return {name: _values(tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _storage(file: BinaryIO, dtype: str) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype, count)


def _values(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    size = storage.itemsize
    strides = [size * stride for stride in tensor.strides]
    # NumPy checks that all of it lies within the storage.
    return np.ndarray(tensor.shape, storage.dtype, storage, size * tensor.offset, strides)
