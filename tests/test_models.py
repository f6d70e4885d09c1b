"""Networks, losses, batches, saving and training: small, but the real Keras."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from stages import features, train
from stages.common import chunks, fitting, networks, saving
from stages.common.backend import device, keras
from stages.common.batches import Batches, Part, Shuffle, augment
from stages.common.calibration import calibration_error
from stages.common.chunks import Rows
from stages.common.fitting import Log
from stages.common.imbalance import class_weights, make_loss
from stages.common.live import live
from stages.common.parameters import Pretrained, Scratch
from stages.common.problem import Problem
from stages.common.scores import f1
from tests.conftest import ROOT

EXAMPLES = np.random.default_rng(0).integers(0, 255, (8, 72, 72, 3), dtype=np.uint8)
PREPROCESSING = {
    "vgg16": keras.applications.vgg16.preprocess_input,
    "xception": keras.applications.xception.preprocess_input,
    "mobilenetv2": keras.applications.mobilenet_v2.preprocess_input,
}


@pytest.fixture(scope="session")
def backbones() -> dict[str, keras.Model]:
    return {name: networks.backbone(name, 72, 72, "random", EXAMPLES) for name in networks.BACKBONES}


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """Chunks of 48 images of three labels that differ in colour, and their split, as the stages write them."""
    generator = np.random.default_rng(1)
    pixels = np.repeat(generator.integers(0, 60, (48, 1, 1, 3), dtype=np.uint8), 32, axis=1).repeat(32, axis=2)
    numbers = np.arange(48) % 3
    pixels[np.arange(48), :, :, numbers] += 120
    names = [f"{number}.jpg" for number in range(48)]
    folder = tmp_path / "resized"
    folder.mkdir()
    for start in (0, 24):
        chunks.write(folder / f"{start:05d}.h5", names[start : start + 24], {"pixels": pixels[start : start + 24]})
    parts = ["train"] * 24 + ["validation"] * 12 + ["test"] * 12
    split = pd.DataFrame({"image": names, "part": parts, "label": np.array(["a", "b", "c"])[numbers], "video": ""})
    return folder, split


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.BACKBONES)
def test_a_backbone_is_flat_frozen_and_preprocesses_as_its_authors_did(
    backbones: dict[str, keras.Model], name: str
) -> None:
    model = backbones[name]
    assert model.input.dtype == "uint8"
    assert not model.trainable_weights
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    scaled = keras.Model(model.input, model.get_layer("scale").output).predict_on_batch(EXAMPLES)
    np.testing.assert_allclose(scaled, PREPROCESSING[name](EXAMPLES.astype("float32")), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.BACKBONES)
def test_random_weights_keep_the_signal_alive_and_are_always_the_same(
    backbones: dict[str, keras.Model], name: str
) -> None:
    maps = backbones[name].predict_on_batch(EXAMPLES)
    assert 1e-2 < maps.std() < 1e2
    again = networks.backbone(name, 72, 72, "random", EXAMPLES)
    for first, second in zip(backbones[name].get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(networks.BACKBONES))
def test_a_folded_backbone_is_the_same_function(backbones: dict[str, keras.Model], name: str) -> None:
    folded = networks.folded(backbones[name])
    kinds = [type(layer) for layer in folded.layers]
    assert keras.layers.BatchNormalization not in kinds
    expected = backbones[name].predict_on_batch(EXAMPLES)
    np.testing.assert_allclose(folded.predict_on_batch(EXAMPLES), expected, atol=1e-4 * np.abs(expected).max())


def test_folding_takes_in_what_follows_a_convolution_alone() -> None:
    keras.utils.set_random_seed(1)
    images = x = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, name="with_bias", bias_initializer="normal")(x)
    x = keras.layers.BatchNormalization(scale=False, name="in_1")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(x)
    x = keras.layers.BatchNormalization(center=False, name="in_2")(x)
    x = keras.layers.SeparableConv2D(6, 3, use_bias=False)(x)
    x = keras.layers.BatchNormalization(name="in_3")(x)
    x = keras.layers.Conv2D(6, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization(name="after_relu")(x)
    shared = keras.layers.Conv2D(6, 1)(x)
    x = keras.layers.Add()([keras.layers.BatchNormalization(name="of_two_uses")(shared), shared])
    model = keras.Model(images, x)
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    folded = networks.folded(model)
    assert [layer.name for layer in folded.layers if isinstance(layer, keras.layers.BatchNormalization)] == [
        "after_relu",
        "of_two_uses",
    ]
    values = generator.normal(size=(5, 16, 16, 3))
    np.testing.assert_allclose(folded.predict_on_batch(values), model.predict_on_batch(values), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_weights_file_is_loaded_and_another_networks_is_refused(
    backbones: dict[str, keras.Model], tmp_path: Path
) -> None:
    source = backbones["mobilenetv2"]
    source.save_weights(tmp_path / "mobilenetv2.weights.h5")
    loaded = networks.backbone("mobilenetv2", 72, 72, str(tmp_path / "mobilenetv2.weights.h5"), EXAMPLES)
    np.testing.assert_array_equal(loaded.predict_on_batch(EXAMPLES), source.predict_on_batch(EXAMPLES))
    (tmp_path / "nonsense.weights.h5").write_bytes(b"no HDF5")
    for other in ("mobilenetv2.weights.h5", "nonsense.weights.h5"):
        with pytest.raises(Problem, match=rf"weights: .*{other} is not a weights file of vgg16"):
            networks.backbone("vgg16", 72, 72, str(tmp_path / other), EXAMPLES)


@pytest.mark.slow
def test_imagenet_weights_that_cannot_be_had_say_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> keras.Model:
        raise OSError("URL fetch failure")

    family = networks.BACKBONES["vgg16"]._replace(build=fail)
    monkeypatch.setitem(networks.BACKBONES, "vgg16", family)
    with pytest.raises(Problem, match="ImageNet weights of vgg16 can't be loaded .* set weights to random or"):
        networks.backbone("vgg16", 72, 72, "imagenet", EXAMPLES)


def test_a_backbone_enlarges_what_it_sees() -> None:
    model = networks.backbone("mobilenetv2", 72, 96, "random", EXAMPLES)
    assert model.input.shape == (None, 72, 72, 3)
    assert model.output.shape == (None, 3, 3, 1280)
    seen = keras.Model(model.input, model.get_layer("resize").output).predict_on_batch(EXAMPLES)
    enlarged = keras.ops.image.resize(EXAMPLES.astype(np.float32), (96, 96), interpolation="bilinear")
    np.testing.assert_allclose(seen, enlarged, atol=1e-3)


def test_auto_weights_follow_from_the_data_alone() -> None:
    assert features.resolve("auto", drawn=True) == "random"
    assert features.resolve("auto", drawn=False) == "imagenet"
    assert features.resolve("imagenet", drawn=True) == "imagenet"
    assert features.resolve("x.h5", drawn=True) == "x.h5"


def test_unfreezing_spares_normalisation(backbones: dict[str, keras.Model]) -> None:
    model = networks.backbone("mobilenetv2", 72, 72, "random", EXAMPLES)
    networks.unfreeze(model, 6)
    free = [layer for layer in model.layers if layer.trainable_weights]
    assert 0 < len(free) < 6
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in free)
    assert free[-1].name == "Conv_1"


@pytest.mark.parametrize(("filters", "pool"), [([4], 1), ([4, 8, 16], 2), ([8, 4, 4, 4], 4)])
def test_scratch_networks_of_any_depth_and_width(filters: list[int], pool: int) -> None:
    model = networks.scratch(72, pool, filters, 0.1, 5)
    assert model.output.shape == (None, 5)
    assert [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)] == filters


def numpy_losses(imbalance: str, counts: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Any:
    """The published formulas, written out once more."""

    def cross_entropy(z: np.ndarray) -> Any:
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]

    weights = counts.sum() / (len(counts) * counts)
    plain = cross_entropy(logits)
    return {
        "none": plain,
        "class_weight": weights[labels] * plain,
        "focal": weights[labels] * (1 - np.exp(-plain)) ** 2 * plain,
        "logit_adjustment": cross_entropy(logits + np.log(counts / counts.sum())),
    }[imbalance]


@pytest.mark.parametrize("imbalance", ["none", "class_weight", "focal", "logit_adjustment"])
def test_losses_are_the_published_ones(imbalance: str) -> None:
    generator = np.random.default_rng(2)
    counts = np.array([80, 15, 5])
    logits = generator.normal(0, 2, (20, 3)).astype(np.float32)
    labels = generator.integers(0, 3, 20)
    losses = make_loss(imbalance, counts)(keras.ops.array(np.eye(3, dtype=np.float32)[labels]), keras.ops.array(logits))
    expected = numpy_losses(imbalance, counts, labels, logits)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(losses), expected, rtol=1e-4, atol=1e-5)


def test_class_weights_average_to_one_and_bear_a_label_without_images() -> None:
    counts = np.array([6, 2, 0])
    weights = class_weights(counts)
    assert (weights * counts).sum() == pytest.approx(counts.sum())
    assert weights[2] == 0
    for imbalance in ("class_weight", "logit_adjustment"):
        value = make_loss(imbalance, counts)(keras.ops.eye(3), keras.ops.ones((3, 3)))
        assert np.isfinite(keras.ops.convert_to_numpy(value)).all()


def test_f1_is_the_mean_over_the_labels_that_occur() -> None:
    truth, predictions = ["a", "a", "b", "b"], ["a", "c", "b", "b"]
    assert f1(truth, predictions, "macro") == pytest.approx((2 / 3 + 1) / 2)
    assert f1(truth, predictions, "macro") > f1_score(truth, predictions, average="macro", zero_division=0)
    assert f1(["a", "b"], ["a", "a"], "macro") == pytest.approx((2 / 3 + 0) / 2)


def test_the_calibration_error_of_hand_made_cases() -> None:
    sure, right = np.full(10, 0.8), np.arange(10) < 8
    assert calibration_error(sure, right) == pytest.approx(0)
    assert calibration_error(sure, np.ones(10, bool)) == pytest.approx(0.2)
    # two bins: 0.9 - 0.5 for four images, 1 - 0.2 for one
    values = calibration_error(np.array([0.9, 0.9, 0.9, 0.9, 0.2]), np.array([1, 1, 0, 0, 1], bool))
    assert values == pytest.approx((4 * 0.4 + 0.8) / 5)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_batches_are_a_function_of_seed_and_epoch(pictures: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = pictures
    rows = Rows(folder, "pixels")
    part = Part([f"{number}.jpg" for number in range(40)], np.arange(40) % 3)

    def epoch(seed: int, number: int) -> np.ndarray:
        batches = Batches(rows, part, 3, 16, Shuffle(seed, number, augment=True))
        return np.concatenate([batches[index][0] for index in reversed(range(len(batches)))])

    np.testing.assert_array_equal(epoch(1, 0), epoch(1, 0))
    assert (epoch(1, 0) != epoch(1, 1)).any()
    assert (epoch(1, 0) != epoch(2, 0)).any()
    varied = Batches(rows, part, 3, 16, Shuffle(1, 0, augment=True))
    for index, (images, targets) in enumerate(varied):  # made ahead, in a thread
        np.testing.assert_array_equal(images, varied[index][0])
        np.testing.assert_array_equal(targets, varied[index][1])
    assert index == 2
    plain = Batches(rows, part, 3, 16)
    assert [len(plain[index][0]) for index in range(len(plain))] == [16, 16, 8]
    np.testing.assert_array_equal(plain[2][1].argmax(axis=1), part.labels[32:])


def test_augmentation_keeps_shape_and_kind() -> None:
    seen = {augment(EXAMPLES[0], np.random.default_rng(number)).tobytes() for number in range(20)}
    assert len(seen) == 20
    image = augment(EXAMPLES[0], np.random.default_rng(0))
    assert image.shape == EXAMPLES[0].shape
    assert image.dtype == np.uint8


def test_a_model_is_saved_in_the_same_bytes_with_its_labels(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = networks.scratch(32, 2, [4], 0.2, 2)
    for name in ("a.keras", "b.keras"):
        saving.save(model, tmp_path / name, ["ü, 1", "2"])
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.keras", "b.keras")}
    assert len(digests) == 1
    loaded, labels = saving.load(tmp_path / "a.keras")
    assert labels == ["ü, 1", "2"]
    images = EXAMPLES[:, :32, :32]
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))


@pytest.mark.slow
def test_each_process_saves_the_same_bytes_whatever_the_users_keras_json(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.common import networks, saving\n"
        "from stages.common.backend import keras\n"
        "keep = [object() for _ in range(int(sys.argv[1]))]; keras.utils.set_random_seed(1)\n"
        "saving.save(networks.scratch(72, 2, [4], 0.1, 3), Path(sys.argv[1] + '.keras'), ['a', 'b', 'c'])"
    )
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    for number, home in (("1", "elsewhere"), ("2000", str(tmp_path))):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_HOME": home}
        subprocess.run([sys.executable, "-c", code, number], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "1.keras").read_bytes() == (tmp_path / "2000.keras").read_bytes()


def rewritten(path: Path, **members: Any) -> Path:
    """A .keras file with some of its JSON members changed, as another program would."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for name, change in members.items():
        values = json.loads(contents[f"{name}.json"])
        contents[f"{name}.json"] = json.dumps(change(values)).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    saving.save(networks.scratch(32, 2, [4], 0.2, 2), tmp_path / "small.keras", ["a", "b"])
    return tmp_path / "small.keras"


def test_what_is_no_model_of_the_project_is_refused(tmp_path: Path, small: Path) -> None:
    with pytest.raises(Problem, match="no such model"):
        saving.load(tmp_path / "absent.keras")
    (tmp_path / "broken.keras").write_bytes(b"PK broken")
    with pytest.raises(Problem, match="not a model of this project"):
        saving.load(tmp_path / "broken.keras")
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(Problem, match="not a model of this project .*labels"):
        saving.load(tmp_path / "other.keras")
    for labels in ({"a": 1}, [1, 2], None):
        with pytest.raises(Problem, match="not a model of this project .its labels are no list of names"):
            saving.load(rewritten(small, metadata=lambda values, labels=labels: values | {"labels": labels}))
    for label in ("a\x1b[2J", "\ud800", "x" * (1 << 20)):
        with pytest.raises(Problem, match="not a model of this project .its "):
            saving.load(rewritten(small, metadata=lambda values, label=label: values | {"labels": [label]}))
    saving.save(networks.scratch(32, 2, [4], 0.2, 2), small, ["a", "b"])
    whole = small.read_bytes()
    for cut in (30, len(whole) // 2, len(whole) - 10):
        small.write_bytes(whole[:cut])
        with pytest.raises(Problem, match="not a model"):
            saving.load(small)


@pytest.mark.parametrize("shapes", [[(10,)], [(32, 32, 1)], [(32, 24, 3)], [(None, None, 3)], [(32, 32, 3)] * 2])
def test_a_model_of_something_else_than_images_is_refused(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    inputs = [keras.Input(shape) for shape in shapes]
    first = keras.layers.Dense(2)(inputs[0])
    output = first if len(inputs) == 1 else keras.layers.Add()([first, keras.layers.Dense(2)(inputs[1])])
    saving.save(keras.Model(inputs, output), tmp_path / "other.keras", ["a", "b"])
    with pytest.raises(Problem, match="other.keras: a model from .* expected one from square RGB images"):
        saving.load(tmp_path / "other.keras")


def test_a_model_that_would_run_code_is_refused(tmp_path: Path, small: Path) -> None:
    ran = tmp_path / "ran"
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(tmp_path / "lambda.keras")
    rewritten(tmp_path / "lambda.keras", metadata=lambda values: values | {"labels": ["a", "b"]})
    with pytest.raises(Problem, match="not a model that is whole and safe to load"):
        saving.load(tmp_path / "lambda.keras")

    def of_another_module(config: Any) -> Any:
        layer = config["config"]["layers"][1]
        layer |= {"module": "subprocess", "class_name": "Popen", "registered_name": None}
        layer["config"] = {"args": ["touch", str(ran)]}
        return config

    def unknown(config: Any) -> Any:
        config["config"]["layers"][1] |= {"module": "nowhere", "class_name": "Evil", "registered_name": "x>Evil"}
        return config

    for change in (of_another_module, unknown):
        saving.save(networks.scratch(32, 2, [4], 0.2, 2), small, ["a", "b"])
        with pytest.raises(Problem, match="not a model that is whole and safe to load"):
            saving.load(rewritten(small, config=change))
    assert not ran.exists()


def scratch_section(**changes: Any) -> Scratch:
    values = {
        "filters": [8, 8],
        "pool": 1,
        "dropout": 0.2,
        "batch_size": 8,
        "learning_rate": 0.01,
        "epochs": 8,
        "patience": 8,
        "imbalance": "none",
        "augment": True,
    }
    return Scratch.model_validate(values | changes)


def test_an_epochs_loss_and_accuracy_are_means_over_all_its_images(
    pictures: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    rows = Rows(pictures[0], "pixels")
    part = Part([f"{number}.jpg" for number in range(41)], np.arange(41) % 3)  # five batches of 8 and one of 1
    keras.utils.set_random_seed(2)
    model = networks.scratch(32, 1, [8], 0.0, 3)
    model.layers[-1].set_weights(
        [np.random.default_rng(0).normal(size=weight.shape) for weight in model.layers[-1].weights]
    )
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    phase = fitting.Phase("only", 1, 1, 1e-12, 8, "none", 1, augment=False)
    log = Log("train-scratch")
    fitting.fit(model, rows, (part, part), phase, log, tmp_path)
    (row,) = log.epochs
    assert 0.1 < row["accuracy"] < 0.9
    assert row["accuracy"] == pytest.approx(row["validation_accuracy"])
    assert row["loss"] == pytest.approx(row["validation_loss"], rel=1e-4)


def test_who_watches_a_resumed_training_sees_all_its_epochs(
    pictures: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    rows = Rows(pictures[0], "pixels")
    part = Part([f"{number}.jpg" for number in range(16)], np.arange(16) % 3)
    for epochs in (2, 3):
        keras.utils.set_random_seed(2)
        seen: list[dict[str, Any]] = []
        log = Log("train-scratch")
        log.show = seen.append
        phase = fitting.Phase("only", epochs, 9, 1e-3, 8, "none", 1, augment=False)
        fitting.fit(networks.scratch(32, 1, [8], 0.0, 3), rows, (part, part), phase, log, tmp_path)
        assert seen == log.epochs
        assert [row["epoch"] for row in seen] == list(range(1, epochs + 1))


def test_curves_that_cannot_be_written_do_not_stop_the_training(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"epoch": 1, "phase": "head", "loss": 1.0}
    Path("dvclive").write_text("a file", encoding="utf-8")
    live()(row)
    assert "curves can't be watched, training goes on" in capsys.readouterr().out
    Path("dvclive").unlink()
    show = live()
    show(row)
    shutil.rmtree("dvclive")
    Path("dvclive").write_text("a file", encoding="utf-8")
    show(row | {"epoch": 2})
    show(row | {"epoch": 3})
    assert capsys.readouterr().out.count("training goes on") == 1


def test_nobody_elsewhere_is_told_of_a_training(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Studio(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_error(500)

    with HTTPServer(("127.0.0.1", 0), Studio) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DVC_STUDIO_TOKEN", "isat_1")
        monkeypatch.setenv("DVC_STUDIO_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("DVC_STUDIO_REPO_URL", "https://example.org/repository")
        monkeypatch.setenv("DVC_STUDIO_OFFLINE", "")
        live()({"epoch": 1, "loss": 1.0})
        server.shutdown()
    assert asked == []


def train_scratch(pictures: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch, section: Scratch) -> Any:
    folder, split = pictures
    monkeypatch.setattr(train, "RESIZED", folder)
    log = Log("train-scratch")
    return *train.train_scratch(section, 5, split, log, Path(tempfile.mkdtemp(dir=folder.parent))), log


@pytest.mark.slow
@pytest.mark.parametrize("imbalance", ["none", "class_weight", "focal", "logit_adjustment"])
def test_scratch_learns_and_keeps_its_best_epoch(
    pictures: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch, imbalance: str
) -> None:
    model, labels, best, log = train_scratch(pictures, monkeypatch, scratch_section(imbalance=imbalance))
    assert labels == ["a", "b", "c"]
    assert best == max(row["validation_macro_f1"] for row in log.epochs) > 0.6
    folder, split = pictures
    validation = split[split["part"] == "validation"]
    predictions = model.predict(Rows(folder, "pixels").read(list(validation["image"])), verbose=0).argmax(axis=1)
    assert f1(validation["label"].to_numpy(), np.array(labels)[predictions], "macro") == pytest.approx(best)


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(
    pictures: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (train_scratch(pictures, monkeypatch, scratch_section(epochs=2))[0].get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_training_stops_when_nothing_gets_better(
    pictures: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = scratch_section(learning_rate=1e-12, epochs=9, patience=2, augment=False)
    assert len(train_scratch(pictures, monkeypatch, section)[3].epochs) < 9


@pytest.mark.slow
def test_an_infinite_loss_is_one_problem(pictures: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    original = networks.scratch

    def exploding(*args: Any) -> keras.Model:
        model = original(*args)
        model.layers[-1].kernel.assign(model.layers[-1].kernel * float("inf"))
        return model

    monkeypatch.setattr(networks, "scratch", exploding)
    with pytest.raises(Problem, match="loss of epoch 1 is not finite; nothing is saved"):
        train_scratch(pictures, monkeypatch, scratch_section())


def test_a_part_whose_images_all_failed_is_one_problem(
    pictures: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, split = pictures
    split.loc[split["part"] == "validation", "image"] += ".bad"
    with pytest.raises(Problem, match="no validation image that could be decoded"):
        train_scratch((folder, split), monkeypatch, scratch_section())


def pretrained_section(**changes: Any) -> Pretrained:
    values = {
        "input_size": 48,
        "precision": "float32",
        "head": "softmax",
        "l2": 10.0,
        "dropout": 0.1,
        "batch_size": 8,
        "learning_rate": 0.01,
        "epochs": 6,
        "patience": 6,
        "imbalance": "class_weight",
        "fine_tune_epochs": 2,
        "fine_tune_layers": 4,
        "fine_tune_learning_rate": 1e-4,
        "refit": False,
    }
    return Pretrained.model_validate(values | changes)


def extract(folder: Path, out: Path, dataset: str) -> Path:
    """The pictures' features by a random MobileNetV2 that enlarges them."""
    out.mkdir()
    model = networks.backbone("mobilenetv2", 32, 48, "random", chunks.read(chunks.paths(folder)[0], "pixels")[1])
    assert features.extract(model, folder, out, dataset, "features-mobilenetv2") == 48
    saving.save(model, out / "backbone.keras", [])
    return out


@pytest.fixture
def extracted(pictures: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train, "RESIZED", pictures[0])
    return extract(pictures[0], tmp_path / "features", "pooled")


@pytest.mark.slow
def test_bfloat16_is_close_and_keeps_its_weights_in_float32(tmp_path: Path) -> None:
    pooled = []
    for precision in ("float32", "bfloat16"):
        model = networks.backbone("vgg16", 72, 48, "random", EXAMPLES, precision)
        saving.save(model, tmp_path / "backbone.keras", [])
        loaded, _ = saving.load(tmp_path / "backbone.keras")
        assert {weight.dtype for weight in loaded.weights} == {"float32"}
        assert loaded.layers[-1].compute_dtype == precision
        pooled.append(np.asarray(loaded.predict_on_batch(EXAMPLES), np.float32).mean(axis=(1, 2)))
        np.testing.assert_array_equal(pooled[-1], np.asarray(model.predict_on_batch(EXAMPLES), np.float32).mean((1, 2)))
    assert 0 < np.abs(pooled[0] - pooled[1]).mean() < 0.02 * pooled[0].mean()
    assert keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "conv"])
def test_heads_learn_on_features_and_fine_tuning_does_not_lose_it(
    pictures: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    folder, split = pictures
    monkeypatch.setattr(train, "RESIZED", folder)
    extracted = extract(folder, tmp_path / "features", networks.TAKES[head])
    log = Log("train-mobilenetv2")
    section = pretrained_section(head=head)
    trained, labels, best = train.train_pretrained(section, 5, split, extracted, log, tmp_path)
    assert [row["phase"] for row in log.epochs].count("fine-tuning") == 2
    assert [row["epoch"] for row in log.epochs] == list(range(1, len(log.epochs) + 1))
    heads = [row["validation_macro_f1"] for row in log.epochs if row["phase"] == "head"]
    assert best >= max(heads) > 0.5
    validation = split[split["part"] == "validation"]
    predictions = trained.predict(Rows(folder, "pixels").read(list(validation["image"])), verbose=0).argmax(axis=1)
    assert f1(validation["label"].to_numpy(), np.array(labels)[predictions], "macro") == pytest.approx(best)
    assert not any(isinstance(layer, keras.Model) for layer in trained.layers)


@pytest.mark.slow
def test_a_refit_trains_as_many_epochs_as_were_best_on_both_parts(
    pictures: tuple[Path, pd.DataFrame], extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, split = pictures
    seen: list[int] = []

    def counted(model: Any, rows: Any, parts: Any, *args: Any, **more: Any) -> Any:
        seen.append(len(parts[0].names))
        return fitting.fit(model, rows, parts, *args, **more)

    monkeypatch.setattr(train, "fit", counted)
    log = Log("train-mobilenetv2")
    section = pretrained_section(refit=True, epochs=4, fine_tune_epochs=2, fine_tune_learning_rate=0.01)
    train.train_pretrained(section, 5, split, extracted, log, tmp_path)
    scores = [row["validation_macro_f1"] for row in log.epochs if row["phase"] == "head"]
    again = [row for row in log.epochs if row["phase"] == "refit-head"]
    assert len(again) == int(np.argmax(scores)) + 1
    assert not any("validation_macro_f1" in row for row in again)
    tuned = [row["validation_macro_f1"] for row in log.epochs if row["phase"] == "fine-tuning"]
    wanted = int(np.argmax(tuned)) + 1 if max(tuned) > max(scores) else 0
    assert [row["phase"] for row in log.epochs].count("refit-fine-tuning") == wanted
    assert seen[:3] == [24, 24, 36]


@pytest.mark.slow
def test_the_head_is_scikit_learns_logistic_regression_on_directions(
    pictures: tuple[Path, pd.DataFrame], extracted: Path, tmp_path: Path
) -> None:
    _, split = pictures
    section = pretrained_section(
        dropout=0.0, l2=20.0, batch_size=24, epochs=300, patience=300, fine_tune_epochs=0, imbalance="none"
    )
    trained, labels, _ = train.train_pretrained(section, 5, split, extracted, Log("train-mobilenetv2"), tmp_path)
    with np.load(tmp_path / "head.npz") as stored:  # of the last epoch, not the best one
        last = {stored[name].shape: stored[name] for name in stored.files if name.startswith("weights ")}
    trained.get_layer("logits").set_weights([last[1280, 3], last[(3,)]])
    rows, used = Rows(extracted, "pooled"), split[split["part"] == "train"]
    pooled, trained_on = rows.read(list(split["image"])), (split["part"] == "train").to_numpy()
    directions = np.sqrt(pooled + 1e-4)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    known = directions[trained_on]
    variance = np.maximum(known.var(axis=0), 1e-2 * known.var(axis=0).mean())
    standardised = (directions - known.mean(axis=0)) / np.sqrt(variance)
    theirs = LogisticRegression(C=1 / 20, max_iter=5000).fit(standardised[trained_on], used["label"])
    logits = keras.Model(trained.get_layer("pool").output, trained.output).predict_on_batch(pooled)
    mine = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert list(theirs.classes_) == labels
    np.testing.assert_allclose(mine, theirs.predict_proba(standardised), atol=0.02)


def test_features_of_zero_have_a_finite_slope() -> None:
    head = networks.head("softmax", 2, 0.0, 0.1, [np.zeros((3, 5), np.float32)])
    pooled = keras.Input((5,))
    whole = keras.Model(pooled, head(keras.layers.ReLU()(keras.layers.Dense(5)(pooled))))
    whole.compile(keras.optimizers.SGD(0.1), "mse")
    whole.fit(np.zeros((3, 5), np.float32), np.ones((3, 2), np.float32), verbose=0)
    assert all(np.isfinite(weights).all() for weights in whole.get_weights())


def test_the_device_is_named() -> None:
    assert f"Keras {keras.version()} on {keras.backend.backend()}" in device()
