"""Files of models: the same bytes for the same model, what is refused, and the head of a loaded model."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.common.backbones.backbone import backbone
from stages.common.backbones.catalog import NETWORKS
from stages.common.dataset.chunks import Rows
from stages.common.networks.scratch import scratch
from stages.common.networks.serialization import head_of, load, save
from stages.common.recipes import pretrained
from stages.common.runtime import paths
from stages.common.runtime.backend import keras, weights_not_drawn
from stages.common.runtime.errors import UserError
from stages.common.training.trainer import Trainer
from stages.train import with_probabilities
from tests.conftest import ROOT, extract_features, pretrained_section


def test_a_model_is_saved_in_the_same_bytes_with_its_labels(tmp_path: Path, noise: np.ndarray) -> None:
    keras.utils.set_random_seed(3)
    model = scratch(32, 2, [4], 0.2, 2)
    for name in ("a.keras", "b.keras"):
        save(model, tmp_path / name, ["ü, 1", "2"])
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.keras", "b.keras")}
    assert len(digests) == 1
    loaded, labels = load(tmp_path / "a.keras")
    assert labels == ["ü, 1", "2"]
    images = noise[:, :32, :32]
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))


@pytest.mark.slow
def test_each_process_saves_the_same_bytes_whatever_the_users_keras_json(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.common.networks import scratch, serialization\n"
        "from stages.common.runtime.backend import keras\n"
        "keep = [object() for _ in range(int(sys.argv[1]))]; keras.utils.set_random_seed(1)\n"
        "model = scratch.scratch(72, 2, [4], 0.1, 3)\n"
        "serialization.save(model, Path(sys.argv[1] + '.keras'), ['a', 'b', 'c'])"
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
    save(scratch(32, 2, [4], 0.2, 2), tmp_path / "small.keras", ["a", "b"])
    return tmp_path / "small.keras"


def test_weights_that_are_loaded_next_are_not_drawn(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", None)
    load(small)
    with pytest.raises(ZeroDivisionError), weights_not_drawn():
        1 / 0  # noqa: B018
    assert keras.initializers.VarianceScaling.__call__ is None  # the initializer is restored


def test_files_that_are_not_a_model_of_the_project_are_refused(tmp_path: Path, small: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        load(tmp_path / "absent.keras")
    (tmp_path / "broken.keras").write_bytes(b"PK broken")
    with pytest.raises(UserError, match="not a model of this project"):
        load(tmp_path / "broken.keras")
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(UserError, match="not a model of this project .*labels"):
        load(tmp_path / "other.keras")
    for labels in ({"a": 1}, [1, 2], None):
        with pytest.raises(UserError, match="not a model of this project .its labels are not a list of names"):
            load(rewritten(small, metadata=lambda values, labels=labels: values | {"labels": labels}))
    for label in ("a\x1b[2J", "\ud800", "x" * (1 << 20)):
        with pytest.raises(UserError, match="not a model of this project .its "):
            load(rewritten(small, metadata=lambda values, label=label: values | {"labels": [label]}))
    save(scratch(32, 2, [4], 0.2, 2), small, ["a", "b"])
    whole = small.read_bytes()
    for cut in (30, len(whole) // 2, len(whole) - 10):
        small.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="not a model"):
            load(small)


@pytest.mark.parametrize("shapes", [[(10,)], [(32, 32, 1)], [(32, 24, 3)], [(None, None, 3)], [(32, 32, 3)] * 2])
def test_a_model_of_something_else_than_images_is_refused(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    inputs = [keras.Input(shape) for shape in shapes]
    first = keras.layers.Dense(2)(inputs[0])
    output = first if len(inputs) == 1 else keras.layers.Add()([first, keras.layers.Dense(2)(inputs[1])])
    save(keras.Model(inputs, output), tmp_path / "other.keras", ["a", "b"])
    with pytest.raises(UserError, match="other.keras: a model from .* expected one from square RGB images"):
        load(tmp_path / "other.keras")


def test_a_model_that_would_run_code_is_refused(tmp_path: Path, small: Path) -> None:
    ran = tmp_path / "ran"
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(tmp_path / "lambda.keras")
    rewritten(tmp_path / "lambda.keras", metadata=lambda values: values | {"labels": ["a", "b"]})
    with pytest.raises(UserError, match="not a model that is complete and safe to load"):
        load(tmp_path / "lambda.keras")

    def of_another_module(config: Any) -> Any:
        layer = config["config"]["layers"][1]
        layer |= {"module": "subprocess", "class_name": "Popen", "registered_name": None}
        layer["config"] = {"args": ["touch", str(ran)]}
        return config

    def unknown(config: Any) -> Any:
        config["config"]["layers"][1] |= {"module": "nowhere", "class_name": "Evil", "registered_name": "x>Evil"}
        return config

    for change in (of_another_module, unknown):
        save(scratch(32, 2, [4], 0.2, 2), small, ["a", "b"])
        with pytest.raises(UserError, match="not a model that is complete and safe to load"):
            load(rewritten(small, config=change))
    assert not ran.exists()


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path: Path, small: Path) -> None:
    def wide(config: Any) -> Any:
        config["config"]["layers"][-1]["config"]["units"] = 10**9
        return config

    with pytest.raises(UserError, match="small.keras: not a model .*it asks for [0-9,]+ weights, more than the file"):
        load(rewritten(small, config=wide))
    images = keras.Input((32, 32, 3))
    enlarged = keras.layers.GlobalAveragePooling2D()(keras.layers.UpSampling2D(20_000)(images))
    save(keras.Model(images, enlarged), tmp_path / "large.keras", ["r", "g", "b"])
    with pytest.raises(UserError, match="large.keras: not a model .*a layer has 1,228,800,000,000 values per image"):
        load(tmp_path / "large.keras")


@pytest.mark.slow
def test_bfloat16_is_close_and_keeps_its_weights_in_float32(tmp_path: Path, noise: np.ndarray) -> None:
    pooled = []
    for precision in ("float32", "bfloat16"):
        model = backbone(NETWORKS["vgg16"], 72, 48, "random", noise, precision)
        save(model, tmp_path / "backbone.keras", [])
        loaded, _ = load(tmp_path / "backbone.keras")
        assert {weight.dtype for weight in loaded.weights} == {"float32"}
        assert loaded.layers[-1].compute_dtype == precision
        pooled.append(np.asarray(loaded.predict_on_batch(noise), np.float32).mean(axis=(1, 2)))
        np.testing.assert_array_equal(pooled[-1], np.asarray(model.predict_on_batch(noise), np.float32).mean((1, 2)))
    assert 0 < np.abs(pooled[0] - pooled[1]).mean() < 0.02 * pooled[0].mean()
    assert keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "conv"])
def test_the_head_on_stored_features_is_the_whole_model_on_images(
    coloured_split: pd.DataFrame, tmp_path: Path, kind: str
) -> None:
    section = pretrained_section(head=kind, epochs=2, fine_tune_epochs=0)
    extract_features(section)
    trainer = Trainer("train-backbone", tmp_path)
    trained = pretrained.train("backbone", section, 5, coloured_split, trainer)
    save(with_probabilities(trained.whole(), "backbone"), paths.model_file("backbone"), trained.labels)
    whole, _ = load(paths.model_file("backbone"))
    names = list(coloured_split["image"])
    expected = whole.predict_on_batch(Rows(paths.RESIZED, "pixels").read(names))
    features = Rows(paths.features("backbone"), section.features)
    head = head_of(whole)
    assert head.input_shape[1:] == features.shape
    np.testing.assert_allclose(head.predict_on_batch(features.read(names)), expected, atol=2e-3)
    assert np.ptp(expected, axis=0).min() > 0.1


def test_a_model_without_features_has_no_head(small: Path) -> None:
    model, _ = load(small)
    with pytest.raises(UserError, match="the model scratch has no layer features; train it again with dvc repro"):
        head_of(model)


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["a\x1b[2J", "b"], r"\(its labels contain control characters\)"),
        (["a" * (1 << 20), "b"], r"\(its metadata.json is larger than 1048576 bytes\)"),
    ],
)
def test_labels_that_would_control_a_terminal_or_fill_the_memory_are_refused(
    small: Path, labels: list[str], line: str
) -> None:
    model, _ = load(small)
    save(model, small, labels)
    with pytest.raises(UserError, match=f"not a model of this project {line}"):
        load(small)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "more"])
def test_an_archive_that_expands_is_refused_before_it_is_read(small: Path, name: str) -> None:
    with zipfile.ZipFile(small) as archive:
        contents = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in (contents | {name: contents.get(name, b"") + b" " * (64 << 20)}).items():
            archive.writestr(each, content)
    with pytest.raises(UserError, match=rf"not a model of this project \(its {name} expands to [\d,]+ bytes\)"):
        load(small)
