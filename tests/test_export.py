"""Models for other programs: what is written is run by its own engine, and is what Keras says."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import keras_hub
import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from PIL import Image

from commands import export
from stages.common.backbones import efficientnet_lite
from stages.common.backbones.backbone import backbone
from stages.common.backbones.catalog import NETWORKS, find
from stages.common.dataset import chunks
from stages.common.evaluation.predictions import prediction_table
from stages.common.evaluation.summary import summary
from stages.common.export import formats, graph, metadata, verify, writing
from stages.common.images.decoding import decode
from stages.common.networks.heads import make_head
from stages.common.networks.model_file import FEATURES
from stages.common.networks.scratch import scratch
from stages.common.networks.serialization import load, save
from stages.common.runtime import paths, tracked
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.train import with_probabilities
from tests.conftest import ROOT

LABELS = ["a", "b, c", "dü", "e", "f"]
KINDS = ("scratch", "softmax", "conv")
OUT = {"onnx": "out.onnx", "litert": "out.tflite", "saved_model": "out"}
DATA = "data/raw/sample"


def small_scratch(size: int = 72) -> keras.Model:
    keras.utils.set_random_seed(1)
    return with_probabilities(scratch(size, 2, [4, 8], 0.1, len(LABELS)), "scratch")


def with_head(network: keras.Model, kind: str, examples: np.ndarray) -> keras.Model:
    """A whole model, with a head of random weights on `network`, as `train` makes it."""
    keras.utils.set_random_seed(2)
    average = kind == "softmax" and len(network.output.shape) == 4
    pool = keras.layers.GlobalAveragePooling2D if average else keras.layers.Identity
    features = pool(dtype="float32", name=FEATURES)(network.output)
    blocks = [keras.Model(network.input, features).predict_on_batch(examples)] if kind == "softmax" else []
    logits = keras.Model(network.input, make_head(kind, len(LABELS), 0.1, blocks)(features))
    if kind == "softmax":  # as after training: no probability is 1
        layer = logits.get_layer("logits")
        layer.set_weights([0.1 * weights for weights in layer.get_weights()])
    return with_probabilities(logits, "backbone")


@pytest.fixture(scope="module")
def small_lite(noise: np.ndarray) -> Iterator[Callable[..., keras.Model]]:
    """The first layers of EfficientNet-Lite, whose names begin with an underscore; a larger input has a Resizing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet_lite, "STAGES", efficientnet_lite.STAGES[:2])
        patch.setattr(efficientnet_lite, "HEAD", 64)
        yield lambda side, precision="float32": backbone(
            NETWORKS["efficientnet_lite0"], 72, side, "random", noise, precision
        )


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, small_lite: Callable[..., keras.Model], noise: np.ndarray
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        "scratch": small_scratch(),
        "softmax": with_head(small_lite(100), "softmax", noise),
        "conv": with_head(small_lite(72), "conv", noise),
        "bfloat16": with_head(small_lite(72, "bfloat16"), "softmax", noise),
    }
    for name, model in made.items():
        save(model, folder / f"{name}.keras", LABELS)
    return {name: folder / f"{name}.keras" for name in made}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m commands.export", *map(str, arguments)])
    export.main()


def described(name: str, out: Path) -> dict[str, Any]:
    """The metadata that a reader of the format finds, with the labels as a list."""
    if name == "onnx":
        found: dict[str, Any] = {each.key: each.value for each in onnx.load(out).metadata_props}
        return found | {"labels": json.loads(found["labels"]), "image_size": int(found["image_size"])}
    if name == "litert":
        with zipfile.ZipFile(out) as archive:
            texts = {each: archive.read(each).decode() for each in archive.namelist()}
    else:
        texts = {each.name: each.read_text(encoding="utf-8") for each in (out / "assets.extra").iterdir()}
    assert texts["labels.txt"].splitlines() == LABELS
    values: dict[str, Any] = json.loads(texts["metadata.json"])
    return values


def leftovers() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"params.yaml", "extra"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OUT)
def test_a_written_file_is_what_keras_says_at_any_batch_size(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, Path],
    noise: np.ndarray,
    name: str,
    kind: str,
) -> None:
    run(monkeypatch, "--model", files[kind], "--format", name, OUT[name])
    shown = capsys.readouterr().out
    assert re.fullmatch(
        rf"export: {OUT[name]} \(\d+\.\d MB\): 64 drawn images \(no test images of 72 x 72 pixels here\), largest "
        r"difference of probability \d\.\de-\d\d, same label for 100 %; licence: unknown: .*\n",
        shown,
    ), shown
    assert leftovers() == {OUT[name]}
    run_it = formats.FORMATS[name].start(Path(OUT[name]))
    expected = load(files[kind])[0].predict_on_batch(noise)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images differ
    for batch in (slice(0, 1), slice(0, 5), slice(5, 6)):
        found = run_it(noise[batch])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[batch], atol=1e-5)
    if name == "saved_model":  # each weight once
        (stored,) = Path(OUT[name], "variables").glob("*.data-*")
        assert stored.stat().st_size < 4 * graph.exportable(load(files[kind])[0]).count_params() + 40_000
    about = described(name, Path(OUT[name]))
    assert about["labels"] == LABELS
    assert about["image_size"] == 72
    assert about["licence"] == metadata.UNKNOWN
    assert about["model_md5"] == tracked.md5(files[kind])
    assert "Lanczos" in about["resizing"]
    assert about["project"] == metadata.PROJECT
    assert about["commit"] == "unknown"  # the workspace is no repository


def test_an_onnx_file_names_its_input_output_and_batch(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    run(monkeypatch, "--model", files["scratch"], "--format", "onnx", "out.onnx")
    described_graph = onnx.load("out.onnx").graph
    (images,), (probabilities,) = described_graph.input, described_graph.output
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert (probabilities.name, probabilities.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
    for value, shape in ((images, ["batch", 72, 72, 3]), (probabilities, ["batch", len(LABELS)])):
        assert [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim] == shape


def test_it_is_compared_on_test_images_where_there_are_some(
    coloured_split: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coloured_split.to_csv(paths.SPLIT, index=False)
    save(small_scratch(32), Path("small.keras"), LABELS)
    run(monkeypatch, "--model", "small.keras", "--format", "onnx", "out.onnx")
    assert "MB): 12 test images, largest" in capsys.readouterr().out


def test_at_most_so_many_test_images_are_read_from_all_over_the_part(
    coloured_split: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured_split.to_csv(paths.SPLIT, index=False)
    monkeypatch.setattr(verify, "IMAGES", 3)
    images, what = verify.images_to_compare(32)
    assert what == "3 test images"
    every = chunks.Rows(paths.RESIZED, "pixels").read([f"{number}.jpg" for number in (36, 41, 47)])
    np.testing.assert_array_equal(images, every)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph in which one weight is another one."""

    def changed(model: keras.Model) -> keras.Model:
        copy = graph.exportable(model)
        layer = copy.get_layer("logits")
        weights, bias = layer.get_weights()
        layer.set_weights([weights, bias + np.eye(len(bias))[0]])
        return copy

    monkeypatch.setattr(writing, "exportable", changed)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", OUT)
def test_a_difference_is_refused_and_leaves_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], name: str
) -> None:
    command = ("--model", files["scratch"], "--format", name, OUT[name])
    message = rf"scratch.keras as {name}: 64 drawn images, .* probability .*e-0[12], .*expected at most 0.001"
    with pytest.raises(UserError, match=message.replace("images,", r"images \(.*\),")):
        run(monkeypatch, *command)
    assert leftovers() == set()
    if name != "saved_model":
        Path(OUT[name]).write_text("old")
        with pytest.raises(UserError, match="nothing was written"):
            run(monkeypatch, *command)
        assert Path(OUT[name]).read_text() == "old"
        assert leftovers() == {OUT[name]}


def test_what_is_no_number_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> None:
    def nothing(path: Path) -> formats.Run:
        return lambda images: np.full((len(images), len(LABELS)), np.nan, np.float32)

    monkeypatch.setitem(formats.FORMATS, "onnx", formats.FORMATS["onnx"]._replace(start=nothing))
    with pytest.raises(UserError, match="probability nan"):
        run(monkeypatch, "--model", files["scratch"], "--format", "onnx", "out.onnx")
    assert leftovers() == set()


@pytest.mark.parametrize("name", ["onnx", "saved_model"])
def test_an_export_replaces_an_older_file_and_follows_links(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], name: str
) -> None:
    Path("deep").mkdir()
    Path(OUT[name]).symlink_to(f"deep/{OUT[name]}")
    for _ in range(2 if name == "onnx" else 1):
        run(monkeypatch, "--model", files["scratch"], "--format", name, OUT[name])
    assert Path(OUT[name]).is_symlink()
    assert [path.name for path in Path("deep").iterdir()] == [OUT[name]]
    assert described(name, Path(OUT[name]))["labels"] == LABELS


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("onnx", "a.keras", r"OUT is 'a.keras'; expected the name of a file that ends in .onnx"),
        ("litert", "out.onnx", r"expected the name of a file that ends in .tflite"),
        ("onnx", "folder.onnx", r"expected the name of a file that ends in .onnx"),
        ("saved_model", "folder.onnx", r"a folder with photo.jpg in it; expected a new name, or an empty folder"),
        ("hub", "folder.onnx", r"a folder with photo.jpg in it; expected a new name"),
        ("saved_model", "file", "OUT is 'file', a file; expected a new name for a folder"),
    ],
)
def test_a_place_that_is_not_for_it_is_noticed_before_the_model_is_loaded(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str, out: str, message: str
) -> None:
    Path("folder.onnx").mkdir()
    Path("folder.onnx/photo.jpg").write_text("mine")
    Path("file").write_text("mine")
    with pytest.raises(UserError, match=message):
        run(monkeypatch, "--model", "absent.keras", "--format", name, out)
    assert Path("folder.onnx/photo.jpg").read_text() == Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "module"), [("onnx", "tf2onnx"), ("onnx", "onnxruntime"), ("litert", "ai_edge_litert")]
)
def test_a_missing_package_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.replace("_", "-")
    with pytest.raises(UserError, match=f"needs the package {package}; pip install -r requirements-export.txt"):
        run(monkeypatch, "--format", name, OUT[name])
    pinned = (ROOT / "requirements-export.txt").read_text(encoding="utf-8")
    assert f"\n{package}==" in pinned


def test_what_a_converter_can_not_take_is_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("unsupported ops:\n SomeOp")

    monkeypatch.setitem(formats.FORMATS, "litert", formats.FORMATS["litert"]._replace(write=refuse))
    with pytest.raises(UserError, match="scratch.keras as litert: can't be exported .unsupported ops: SomeOp"):
        run(monkeypatch, "--model", files["scratch"], "--format", "litert", "out.tflite")
    assert leftovers() == set()


def test_a_full_disk_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("{{function_node}} /tmp/variables; File too large [Op:SaveV2]")

    monkeypatch.setitem(formats.FORMATS, "litert", formats.FORMATS["litert"]._replace(write=full))
    with pytest.raises(UserError, match=r"could not write .*out.tflite, or a temporary .*: File too large; free disk"):
        run(monkeypatch, "--model", files["scratch"], "--format", "litert", "out.tflite")


def test_a_place_that_can_not_be_written_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    Path("file").write_text("mine")
    with pytest.raises(UserError, match="could not write file/out.onnx: (Not a directory|File exists)"):
        run(monkeypatch, "--model", files["scratch"], "--format", "onnx", "file/out.onnx")
    assert Path("file").read_text() == "mine"


def test_onnxruntime_leaves_no_identifier_of_the_machine(tmp_path: Path) -> None:
    code = "import stages.common.export.formats, onnxruntime"
    places = {name: str(tmp_path) for name in ("XDG_CACHE_HOME", "TMPDIR")}
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | places
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_a_model_in_bfloat16_becomes_float32_and_says_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: dict[str, Path]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keras.initializers.VarianceScaling, "__call__", None)  # no weights are drawn
        run(monkeypatch, "--model", files["bfloat16"], "--format", "onnx", "out.onnx")
    shown = capsys.readouterr().out
    assert "same label for 100 %" in shown
    assert re.search(r"the file computes in float32.* in bfloat16 differs by [1-9]\.\de-0[1-4]", shown), shown


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos3"])
@pytest.mark.parametrize("side", [50, 72, 101])
def test_resizing_as_products_is_what_keras_predicts(noise: np.ndarray, interpolation: str, side: int) -> None:
    images = keras.Input((72, 72, 3), dtype="uint8", name="images")
    model = keras.Model(images, keras.layers.Resizing(side, side, interpolation=interpolation, name="resize")(images))
    found = graph.exportable(model)
    assert not any(isinstance(layer, keras.layers.Resizing) for layer in found.layers)
    np.testing.assert_allclose(found.predict_on_batch(noise), model.predict_on_batch(noise), atol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_convolution_of_many_groups_becomes_a_depthwise_one(noise: np.ndarray, precision: str) -> None:
    images = keras.Input((72, 72, 3), dtype="uint8", name="images")
    keras.utils.set_random_seed(1)
    x = keras.layers.Rescaling(1 / 255)(images)
    options = {"bias_initializer": "normal", "dtype": precision}
    x = keras.layers.Conv2D(6, 3, 2, "same", groups=3, name="grouped", **options)(x)
    x = keras.layers.Conv2D(4, 3, groups=2, name="of_two", **options)(x)
    model = keras.Model(images, x)
    found = graph.exportable(model)
    assert isinstance(found.get_layer("grouped"), keras.layers.DepthwiseConv2D)
    assert isinstance(found.get_layer("of_two"), keras.layers.Conv2D)
    expected = graph.in_float32(model).predict_on_batch(noise)
    np.testing.assert_allclose(found.predict_on_batch(noise), expected, atol=1e-5)


# A model of this repository, with the locks that dvc writes.


def entry(path: Path) -> dict[str, str]:
    return {"path": str(path), "md5": tracked.md5(path)}


def write_locks(name: str, data: str = DATA, **parameters: Any) -> None:
    """The lock files that tell of the model, the split and the predictions that are there."""
    paths.ANNOTATIONS.write_text("image\n")
    stages = {
        "annotate": {"params": {"params.yaml": {"data": data}}, "outs": [entry(paths.ANNOTATIONS)]},
        "split": {
            "deps": [entry(paths.ANNOTATIONS)],
            "params": {"params.yaml": {"split": {"group": "video"}}},
            "outs": [entry(paths.SPLIT)],
        },
        "sample": {"params": {"params.yaml": {"sample": {"images": 160}}}},
        "chunked-resize": {"params": {"params.yaml": {"resize": {"size": 32}}}},
    }
    model, predictions = paths.model_file(name), paths.predictions(name)
    trained = {
        f"train-{name}": {
            "deps": [entry(paths.SPLIT)],
            "params": {"params.yaml": {"seed": 1, **parameters}},
            "outs": [entry(model)],
        },
        f"infer-{name}": {"deps": [entry(model)], "outs": [entry(predictions)]},
    }
    for lock, content in ((paths.MAIN_LOCK, stages), (paths.MODELS_LOCK, trained)):
        lock.parent.mkdir(exist_ok=True)
        lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": content}), encoding="utf-8")


@pytest.fixture
def trained(coloured_split: pd.DataFrame) -> pd.DataFrame:
    """The predictions of a model that the locks tell of."""
    coloured_split.to_csv(paths.SPLIT, index=False)
    model = small_scratch(32)
    save(model, paths.model_file("scratch"), LABELS)
    test = coloured_split[coloured_split["part"] == "test"].assign(label=np.resize(LABELS[:2], 12))
    rows = chunks.Rows(paths.RESIZED, "pixels").read(list(test["image"]))
    table = prediction_table(test[["image", "video", "label"]], model.predict_on_batch(rows), LABELS)
    table.to_csv(paths.predictions("scratch"), index=False)
    (Path() / paths.CITATION).write_text((ROOT / paths.CITATION).read_text(encoding="utf-8"), encoding="utf-8")
    write_locks("scratch")
    return table


def mpii(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / paths.MPII_ANNOTATIONS).touch()
    return str(folder)


def licence() -> str:
    return metadata.licence_of(metadata.origin_of(paths.model_file("scratch")))


@pytest.mark.usefixtures("trained")
def test_the_licence_is_that_of_the_data_that_the_model_learned_from(workspace: Path) -> None:
    assert licence() == metadata.MIT
    for data, expected in (
        (paths.MPII, metadata.RESEARCH),
        (mpii(workspace / "elsewhere"), metadata.RESEARCH),
        ("/my/photographs", metadata.UNKNOWN),
    ):
        write_locks("scratch", data)
        assert licence() == expected
    write_locks("scratch", weights="mine.weights.h5")
    assert licence() == metadata.UNKNOWN


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("edited", [paths.MAIN_LOCK, paths.MODELS_LOCK, paths.model_file("scratch"), None])
def test_nothing_is_claimed_of_a_model_that_the_locks_do_not_tell_of(workspace: Path, edited: Path | None) -> None:
    assert licence() == metadata.MIT
    file = edited or Path("copy.keras")
    if edited in paths.LOCKS:
        file.write_text(file.read_text().replace(tracked.md5(paths.SPLIT), "0"))
    else:
        file.write_bytes(paths.model_file("scratch").read_bytes() + b"x" * (edited is not None))
    assert metadata.origin_of(file if edited not in paths.LOCKS else paths.model_file("scratch")) is None


def test_an_encoder_that_has_seen_other_photographs_has_an_unknown_licence(trained: pd.DataFrame) -> None:
    origin = metadata.Origin("selfsupervised", DATA, {}, "", "")
    assert metadata.licence_of(origin) == metadata.UNKNOWN  # nothing tells what it has seen
    for name, expected in (("1.jpg", metadata.MIT), ("extra//1.jpg", metadata.UNKNOWN)):
        chunks.write(paths.UNLABELLED / "00000.h5", [name], {"pixels": np.zeros((1, 32, 32, 3), np.uint8)})
        assert metadata.licence_of(origin) == expected


def hub_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    run(monkeypatch, "--model", "scratch", "--format", "hub", "hub")
    return Path("hub")


def test_a_folder_for_a_hub_has_the_model_its_labels_and_a_card_that_the_hub_reads(
    trained: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_locks("scratch", paths.MPII, pretrain={"extra": "/home/me/private/photos"})
    folder = hub_folder(monkeypatch)
    assert "nothing was pushed" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"README.md", "labels.json", "model.keras"}
    assert (folder / "model.keras").read_bytes() == paths.model_file("scratch").read_bytes()
    assert json.loads((folder / "labels.json").read_text(encoding="utf-8")) == LABELS
    text = (folder / "README.md").read_text(encoding="utf-8")
    read = huggingface_hub.ModelCard(text).data.to_dict()
    assert (read["library_name"], read["pipeline_tag"]) == ("keras", "image-classification")
    assert (read["license"], read["license_name"]) == ("other", "research-use-only")
    assert read["license_link"].startswith("http")
    (result,) = read["model-index"][0]["results"]
    scores = summary(trained.rename(columns={label: f"probability of {label}" for label in LABELS}))
    assert [each["value"] for each in result["metrics"]][:3] == [
        scores[name] for name in ("macro_f1", "weighted_f1", "accuracy")
    ]
    low, high = scores["macro_f1_interval"]
    assert result["metrics"][0]["name"] == f"macro F1 (95 % interval {low} to {high})"
    assert f"| macro F1 | {scores['macro_f1']:.3f} | {low:.3f} to {high:.3f} |" in text
    assert "On 12 test images of 12 videos" in text
    assert "24 images for training, 12 for validation" in text
    assert "research use only" in text
    assert "@inproceedings{andriluka2014mpii" in text
    assert "/home/me" not in text


def test_the_example_of_a_card_labels_a_photograph(trained: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folder(monkeypatch)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert huggingface_hub.ModelCard(text).data.to_dict()["license"] == "mit"
    Image.new("RGB", (32, 32), (200, 30, 60)).save(folder / "photo.jpg", quality=95)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    expected = load(paths.model_file("scratch"))[0].predict_on_batch(decode(folder / "photo.jpg", 32)[None])[0]
    label, probability = ended.stdout.rsplit(maxsplit=1)
    assert label == LABELS[expected.argmax()]
    assert float(probability) == pytest.approx(expected.max(), abs=1e-3)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("edited", [paths.SPLIT, paths.predictions("scratch")])
def test_a_card_with_results_of_something_else_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, edited: Path
) -> None:
    edited.write_text(edited.read_text() + "\n")
    with pytest.raises(UserError, match="do not match dvc.lock"):
        hub_folder(monkeypatch)
    assert not Path("hub").exists()


@pytest.mark.usefixtures("trained")
def test_a_card_that_may_have_been_edited_is_not_replaced(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_folder(monkeypatch)
    with pytest.raises(UserError, match=r"a folder with README.md in it; expected a new name"):
        hub_folder(monkeypatch)


@pytest.mark.usefixtures("trained")
def test_a_card_names_all_that_makes_the_model_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_locks("scratch", scratch={"refit": True})
    for command in (["init"], ["add", "params.yaml"], ["commit", "-m", "Parameters"]):
        settings = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *settings, *command], check=True, capture_output=True)
    Path("params.yaml").write_text("edited: true")
    text = (hub_folder(monkeypatch) / "README.md").read_text(encoding="utf-8")
    assert re.search("commit `[0-9a-f]{40}-dirty`", text)
    assert "resize:\n  size: 32" in text or "resize.size: 32" in text
    assert "images: 160" in text
    assert "after all choices the final model was trained on both" in text


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("content", ["", "<<<<<<< HEAD\nstages:\n"])
def test_a_damaged_lock_file_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    paths.MAIN_LOCK.write_text(content)
    with pytest.raises(UserError, match="^dvc.lock: not a lock file of DVC .*; resolve the conflict, or git checkout"):
        hub_folder(monkeypatch)


# The example of docs/export.md, for which there are only ONNX Runtime, NumPy and Pillow.
BLOCKER = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is not for the example")
sys.meta_path.insert(0, Blocker())
"""
BLOCKED = {"keras", "tensorflow", "jax", "pandas", "scipy", "stages", "commands", "onnx", "cykooz_resizer", "h5py"}


def test_the_example_labels_a_photograph_with_onnxruntime_and_pillow_alone(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?onnxruntime.*?)```", text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    run(monkeypatch, "--model", files["softmax"], "--format", "onnx", "model.onnx")
    generator = np.random.default_rng(3)
    photograph = Image.fromarray(generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((360, 240))
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    photograph.save("photo.jpg", quality=95, exif=exif)
    command = [sys.executable, "-c", BLOCKER.format(blocked=BLOCKED) + code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    model, _ = load(files["softmax"])
    lying = Image.open("photo.jpg").convert("RGB")
    squares = [
        decode(Path("photo.jpg"), 72),
        *(
            np.asarray(each.resize((72, 72), Image.Resampling.LANCZOS))
            for each in (lying.transpose(Image.Transpose.ROTATE_270), lying)
        ),
    ]
    ours, expected, wrong = model.predict_on_batch(np.stack(squares))
    label, probability = ended.stdout.splitlines()[0].rsplit(maxsplit=1)
    assert label == LABELS[ours.argmax()]
    assert float(probability) == pytest.approx(expected.max(), abs=1e-5)
    assert float(probability) != pytest.approx(wrong.max(), abs=1e-4)
    assert float(probability) == pytest.approx(ours.max(), abs=0.02)


def test_the_formats_are_checked_by_argparse(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("out",), ("--format", "openvino", "out")):
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, *arguments)
        assert caught.value.code == 2
    assert "invalid choice: 'openvino'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_under_its_name(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from commands import export
        from stages.common.export import formats
        def write(model, path, metadata):
            path.write_bytes(b"half")
            Path("half").touch()
            time.sleep(60)
        formats.FORMATS["onnx"] = formats.FORMATS["onnx"]._replace(write=write)
        export.main()
    """
    command = [sys.executable, "-c", code, "--model", str(files["scratch"]), "--format", "onnx", "out.onnx"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not Path("half").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("out.onnx").exists()
    Path("half").unlink()
    run(monkeypatch, "--model", files["scratch"], "--format", "onnx", "out.onnx")
    assert leftovers() == {"out.onnx"}


@pytest.mark.slow
def test_keras_on_jax_writes_a_saved_model_and_says_what_it_can_not(workspace: Path, files: dict[str, Path]) -> None:
    def on_jax(name: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "commands.export",
            "--model",
            str(files["softmax"]),
            "--format",
            name,
            OUT[name],
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "jax"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    written = on_jax("saved_model")
    assert "largest difference of probability" in written.stdout, written.stderr
    refused = on_jax("litert")
    assert refused.returncode == 1
    assert refused.stderr == ("error: --format litert can't be written by Keras on jax; set KERAS_BACKEND=tensorflow\n")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, noise: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    keras_hub.models.ViTBackbone((32, 32, 3), 8, 2, 2, 16, 32).save_to_preset(str(folder / "preset"))
    network = backbone(find(f"hub:{folder / 'preset'}"), 72, None, "imagenet", noise)
    save(with_head(network, "softmax", noise), folder / "vit.keras", LABELS)
    return folder / "vit.keras"


@pytest.mark.slow
@pytest.mark.parametrize("name", OUT)
def test_a_network_of_keras_hub_is_exported(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, vit: Path, noise: np.ndarray, name: str
) -> None:
    run(monkeypatch, "--model", vit, "--format", name, OUT[name])
    expected = load(vit)[0].predict_on_batch(noise)
    np.testing.assert_allclose(formats.FORMATS[name].start(Path(OUT[name]))(noise), expected, atol=1e-5)
