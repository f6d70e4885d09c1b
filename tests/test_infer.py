"""The predictions of the test part: from images and from features, and the labels and shapes that must agree."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import features, infer, train
from stages.common.backbones.backbone import backbone
from stages.common.dataset import chunks
from stages.common.networks.scratch import scratch
from stages.common.networks.serialization import load, save
from stages.common.runtime import parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.train import with_probabilities
from tests.conftest import set_parameters

LABELS = ["a", "b, c"]
PARTS = ["test"] * 6 + ["train"] * 4 + ["validation"] * 2


@pytest.fixture
def images(workspace: Path, small_network: None) -> np.ndarray:
    """Six test images of two labels, with some to train on, as the stages leave them."""
    names = [f"{number}.jpg" for number in range(12)]
    pixels = np.random.default_rng(0).integers(0, 255, (12, 72, 72, 3), dtype=np.uint8)
    pixels[::2] //= 4
    chunks.write(paths.RESIZED / "00000.h5", names, {"pixels": pixels})
    table = pd.DataFrame({"image": names, "part": PARTS, "label": LABELS * 6, "video": "1"})
    table.to_csv(paths.SPLIT, index=False)
    return pixels[:6]


def save_scratch(size: int) -> keras.Model:
    model = with_probabilities(scratch(size, 2, [4], 0.0, 2), "scratch")
    save(model, paths.model_file("scratch"), LABELS)
    return model


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setattr(sys, "argv", ["infer", name])
    infer.main()
    return pd.read_csv(paths.predictions(name))


def make_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["features", "backbone"])
    features.main()


def train_on_features(kind: str, monkeypatch: pytest.MonkeyPatch) -> keras.Model:
    """Run features and train for a model with this head; the model that they leave."""
    rate = {"softmax": 0.01, "conv": 0.0003}[kind]
    changes = {"head": kind, "learning_rate": rate, "l2": 1, "imbalance": "none", "refit": False}
    set_parameters(Path("params.yaml"), {f"backbone.{key}": value for key, value in changes.items()})
    make_features(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["train", "backbone"])
    train.main()
    model, _ = load(paths.model_file("backbone"))
    return model


def test_each_test_image_gets_the_probability_of_each_label(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_scratch(72)
    table = run("scratch", monkeypatch)
    assert list(table.columns) == ["image", "video", "label", "prediction", "probability", *LABELS]
    np.testing.assert_allclose(table[LABELS], model.predict_on_batch(images), atol=1e-6)
    assert (table[LABELS].idxmax(axis=1) == table["prediction"]).all()
    assert (table[LABELS].max(axis=1) == table["probability"]).all()


@pytest.mark.parametrize("damage", ["cut", "shape", "folder"])
def test_a_damaged_batch_of_an_earlier_run_is_predicted_again(
    images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    whole, rows = save_scratch(72), chunks.Rows(paths.RESIZED, "pixels")
    model = infer.Model(whole.predict_on_batch, rows.shape, LABELS, "CPU", paths.RESIZED, "pixels")
    names = [f"{number % 6}.jpg" for number in range(2 * infer.BATCH + 1)]
    expected = infer.probabilities(model, rows, names, tmp_path, "infer-scratch")
    np.testing.assert_allclose(expected, whole.predict_on_batch(images)[np.arange(len(names)) % 6], atol=1e-6)
    batches = sorted(tmp_path.glob("*.npz"))
    assert len(batches) == 3
    if damage == "cut":
        batches[1].write_bytes(batches[1].read_bytes()[:-30])
    elif damage == "shape":
        np.savez(batches[1], np.zeros(3))
    else:
        batches[1].unlink()
        batches[1].mkdir()
    capsys.readouterr()
    again = infer.probabilities(model, rows, names, tmp_path, "infer-scratch")
    np.testing.assert_array_equal(again, expected)
    discarded, resuming = capsys.readouterr().out.splitlines()
    assert discarded.startswith(f"infer-scratch: discarded the damaged {batches[1].name} (")
    assert resuming == "infer-scratch: resuming: 2/3 batches done"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "conv"])
def test_features_give_the_same_as_the_whole_model_on_the_images(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = train_on_features(kind, monkeypatch)
    expected = model.predict_on_batch(images)
    assert np.ptp(expected, axis=0).min() > 0.05
    for fine_tune_epochs, dataset, tolerance in (
        (0, {"softmax": "pooled", "conv": "maps"}[kind], 2e-3),
        (1, "pixels", 1e-5),
    ):
        set_parameters(Path("params.yaml"), {"backbone.fine_tune_epochs": fine_tune_epochs})
        capsys.readouterr()
        table = run("backbone", monkeypatch)
        assert f"infer-backbone: {dataset} of 6 test images" in capsys.readouterr().out
        np.testing.assert_allclose(table[LABELS], expected, atol=tolerance)


@pytest.mark.slow
def test_a_head_that_is_trained_on_pooled_features_is_inferred_from_them(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As architecture.md says how to add one: its name, and the features that it takes."""
    expected = train_on_features("softmax", monkeypatch).predict_on_batch(images)
    monkeypatch.setitem(parameters.FEATURES, "conv", "pooled")
    set_parameters(Path("params.yaml"), {"backbone.head": "conv"})
    np.testing.assert_allclose(run("backbone", monkeypatch)[LABELS], expected, atol=2e-3)


@pytest.mark.usefixtures("images")
def test_features_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> keras.Model:
        network = backbone(*arguments)
        # After all ReLU6, which on some processors make a number of NaN.
        return keras.Model(network.input, keras.layers.Rescaling(float("nan"))(network.output))

    monkeypatch.setattr(features, "backbone", broken)
    with pytest.raises(UserError, match="features of 00000.h5 are not finite; these weights do not fit the backbone"):
        make_features(monkeypatch)
    assert not paths.features("backbone").exists()


@pytest.mark.usefixtures("images")
def test_other_labels_than_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save_scratch(72)
    paths.SPLIT.write_text(paths.SPLIT.read_text().replace(",a,", ",z,"))
    with pytest.raises(UserError, match=r"has other labels than data/split.csv \(2 and 2; different: a, z\)"):
        run("scratch", monkeypatch)
    assert not paths.predictions("scratch").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_features_of_another_kind_of_head_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    train_on_features("softmax", monkeypatch)
    set_parameters(Path("params.yaml"), {"backbone.head": "conv"})
    with pytest.raises(UserError, match="contains no maps; make them with dvc repro"):
        run("backbone", monkeypatch)
    make_features(monkeypatch)
    shapes = r"takes maps of \(16,\), data/features/backbone has \(9, 9, 16\)"
    with pytest.raises(UserError, match=f"{shapes}; train again with dvc repro"):
        run("backbone", monkeypatch)
    assert not paths.predictions("backbone").exists()


@pytest.mark.usefixtures("images")
def test_a_model_without_a_head_on_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save(with_probabilities(scratch(72, 2, [4], 0.0, 2), "other"), paths.model_file("backbone"), LABELS)
    with pytest.raises(UserError, match=r"model.keras: not a model of this project \(it has no layer features\)"):
        run("backbone", monkeypatch)


@pytest.mark.usefixtures("images")
def test_a_model_for_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save_scratch(48)
    with pytest.raises(UserError, match=r"takes pixels of \(48, 48, 3\), data/resized has \(72, 72, 3\)"):
        run("scratch", monkeypatch)
