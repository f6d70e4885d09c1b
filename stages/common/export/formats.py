"""The formats: how a file or folder of each is written, and how the format's own engine runs it."""

import importlib
import importlib.util
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError, debugging
from stages.common.runtime.workers import available_cores

# ONNX Runtime for Linux writes an identifier of the machine to the user's cache when it is imported, and collects telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# From images, (n, size, size, 3) uint8 with any n, to probabilities, (n, labels) float32.
Run = Callable[[np.ndarray], np.ndarray]
OPSET = 18  # the newest that tf2onnx writes
INPUT, OUTPUT = "images", "probabilities"
LABELS, METADATA = "labels.txt", "metadata.json"


class Format(NamedTuple):
    """A format.

    Attributes:
        suffix: of its file's name; empty: it is a folder.
        packages: by backend of Keras, the modules that write and run it, with their packages; a missing backend can't.
        write: writes a model that `exportable` made, and metadata, to a path: of an empty folder, or with the suffix.
        start: starts the engine on a written file or folder.
    """

    suffix: str
    packages: dict[str, dict[str, str]]
    write: Callable[[keras.Model, Path, dict[str, Any]], None]
    start: Callable[[Path], Run]


def _write_saved_model(model: keras.Model, folder: Path, metadata: dict[str, Any]) -> None:
    archive = keras.export.ExportArchive()
    if keras.backend.backend() == "jax":
        archive.track(model)  # on TensorFlow each weight would be in the file twice
    archive.add_endpoint("serve", lambda images: {OUTPUT: model(images, training=False)}, [_signature(model)])
    archive.write_out(str(folder), verbose=False)
    extra = folder / "assets.extra"  # TensorFlow's name for what a program beside it may read
    extra.mkdir()
    for name, text in _texts(metadata).items():
        (extra / name).write_text(text, encoding="utf-8")


def _start_saved_model(folder: Path) -> Run:
    # By name, as the code of models must not use TensorFlow: here it is the engine that the format is made for.
    loaded = importlib.import_module("tensorflow").saved_model.load(str(folder))
    return lambda images: np.asarray(loaded.serve(images)[OUTPUT])


def _write_onnx(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    if keras.backend.backend() == "jax":
        model.export(str(path), format="onnx", verbose=False, input_signature=[_signature(model)])
    else:
        _saved_model_to_onnx(model, path)
    written = onnx.load(path)
    graph = written.graph
    for value, name in ((graph.input[0], INPUT), (graph.output[0], OUTPUT)):
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [name if each == value.name else each for each in names]
        value.name = name
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(written, texts)
    onnx.checker.check_model(written)
    path.write_bytes(written.SerializeToString())


def _saved_model_to_onnx(model: keras.Model, path: Path) -> None:
    """By way of a SavedModel: straight from Keras, constants of some layers become further inputs."""
    import tf2onnx
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")  # of GELU, which tf2onnx does not know
    class _Erfc:
        @classmethod
        def version_9(cls, graph: Any, node: Any, **options: Any) -> None:
            node.type = "Erf"
            one = graph.make_const(f"{node.name}/one", np.ones((), np.float32))
            complement = graph.insert_new_node_on_output("Sub", node.output[0], name=f"{node.name}/complement")
            graph.replace_inputs(complement, [one.output[0], node.output[0]])

    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, Path(folder), {"labels": []})
        frozen, inputs, outputs, *_ = tf2onnx.tf_loader.from_saved_model(folder, None, None)
    tf2onnx.convert.from_graph_def(
        frozen, input_names=list(inputs), output_names=list(outputs), opset=OPSET, output_path=str(path)
    )


def _start_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        values: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
        return values

    return run


def _write_litert(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    model.export(str(path), format="litert", verbose=False, input_signature=[_signature(model)])
    # Files of a LiteRT model are a zip archive after it, which the interpreter does not read.
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in _texts(metadata).items():
            archive.writestr(zipfile.ZipInfo(name), text)


def _start_litert(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=available_cores())
    (images,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(batch: np.ndarray) -> np.ndarray:
        if interpreter.get_input_details()[0]["shape"][0] != len(batch):
            interpreter.resize_tensor_input(images["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images["index"], batch)
        interpreter.invoke()
        values: np.ndarray = interpreter.get_tensor(probabilities["index"])
        return values

    return run


def _signature(model: keras.Model) -> keras.InputSpec:
    return keras.InputSpec(shape=model.input_shape, dtype="uint8", name=INPUT)


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    """The text of each file that tells what a model is."""
    return {
        LABELS: "".join(f"{label}\n" for label in metadata["labels"]),
        METADATA: json.dumps(metadata, indent=2, ensure_ascii=False) + "\n",
    }


_ONNX = {"onnx": "onnx", "onnxruntime": "onnxruntime"}
FORMATS = {
    "onnx": Format(
        ".onnx",
        {"tensorflow": _ONNX | {"tf2onnx": "tf2onnx"}, "jax": _ONNX | {"jax2onnx": "jax2onnx==0.17.1"}},
        _write_onnx,
        _start_onnx,
    ),
    "litert": Format(".tflite", {"tensorflow": {"ai_edge_litert": "ai-edge-litert"}}, _write_litert, _start_litert),
    "saved_model": Format(
        "",
        {backend: {"tensorflow": "tensorflow"} for backend in ("tensorflow", "jax")},
        _write_saved_model,
        _start_saved_model,
    ),
}


def check(name: str) -> None:
    """Raise a `UserError` if this format can't be written here: the backend can't, or a package is missing."""
    backend, possible = keras.backend.backend(), FORMATS[name].packages
    if backend not in possible:
        raise UserError(f"--format {name} can't be written by Keras on {backend}; set KERAS_BACKEND=tensorflow")
    for module, package in possible[backend].items():
        if importlib.util.find_spec(module) is None:
            how = package if "==" in package else "-r requirements-export.txt"
            raise UserError(f"--format {name} needs the package {package.split('==')[0]}; pip install {how}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what converters and engines write to stderr, from C++ as well; `DEBUG=1` shows it."""
    if debugging():
        yield
        return
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
