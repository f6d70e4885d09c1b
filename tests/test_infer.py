"""The predictions of the test part: from images and from features, and the labels and shapes that must agree."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import features, infer
from stages.common import chunks, networks, saving
from stages.common.backend import keras
from stages.common.predictions import PREDICTIONS
from stages.common.problem import Problem
from tests.conftest import set_parameters

LABELS = ["a", "b, c"]


@pytest.fixture
def images(workspace: Path) -> np.ndarray:
    """Six test images of two labels, as the stages leave them."""
    names = [f"{number}.jpg" for number in range(6)]
    pixels = np.random.default_rng(0).integers(0, 255, (6, 72, 72, 3), dtype=np.uint8)
    chunks.write(Path("data/resized/00000.h5"), names, {"pixels": pixels})
    table = pd.DataFrame({"image": names, "part": "test", "label": LABELS * 3, "video": "1"})
    table.to_csv("data/split.csv", index=False)
    return pixels


def save(model: keras.Model, name: str) -> keras.Model:
    whole = keras.Model(model.input, keras.layers.Softmax(name="probabilities")(model.output), name=name)
    saving.save(whole, Path(f"models/{name}/model.keras"), LABELS)
    return whole


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setattr(sys, "argv", ["infer", name])
    infer.main()
    return pd.read_csv(PREDICTIONS.format(name))


def test_each_test_image_gets_the_probability_of_each_label(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(networks.scratch(72, 2, [4], 0.0, 2), "scratch")
    table = run("scratch", monkeypatch)
    assert list(table.columns) == ["image", "video", "label", "prediction", "probability", *LABELS]
    np.testing.assert_allclose(table[LABELS], model.predict_on_batch(images), atol=1e-6)
    assert (table[LABELS].idxmax(axis=1) == table["prediction"]).all()
    assert (table[LABELS].max(axis=1) == table["probability"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "conv"])
def test_features_give_what_the_whole_model_gives_on_the_images(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    set_parameters(Path("params.yaml"), {"mobilenetv2.head": kind})
    backbone = networks.backbone("mobilenetv2", 72, 72, "random", images)
    folder = infer.FEATURES / "mobilenetv2"
    folder.mkdir(parents=True)
    features.extract(backbone, infer.RESIZED, folder, networks.TAKES[kind], "features-mobilenetv2")
    saving.save(backbone, folder / "backbone.keras", [])
    maps = backbone.output
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(maps) if kind == "softmax" else maps
    examples = [np.asarray(backbone.predict_on_batch(images)).mean(axis=(1, 2))]
    model = save(keras.Model(backbone.input, networks.head(kind, 2, 0.0, 0.0, examples)(pooled)), "mobilenetv2")
    table = run("mobilenetv2", monkeypatch)
    np.testing.assert_allclose(table[LABELS], model.predict_on_batch(images), atol=2e-3)
    set_parameters(Path("params.yaml"), {"mobilenetv2.fine_tune_epochs": 1})
    table = run("mobilenetv2", monkeypatch)
    np.testing.assert_allclose(table[LABELS], model.predict_on_batch(images), atol=1e-5)


@pytest.mark.usefixtures("images")
def test_other_labels_than_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save(networks.scratch(72, 2, [4], 0.0, 2), "scratch")
    split = Path("data/split.csv")
    split.write_text(split.read_text().replace(",a,", ",z,"))
    with pytest.raises(Problem, match=r"has other labels than data/split.csv \(2 and 2; different: a, z\)"):
        run("scratch", monkeypatch)
    assert not Path("models/scratch/predictions.csv").exists()


@pytest.mark.slow
def test_features_of_another_kind_of_head_are_one_line(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = networks.backbone("mobilenetv2", 72, 72, "random", images)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
    save(
        keras.Model(backbone.input, networks.head("softmax", 2, 0.0, 0.0, [np.ones((2, 1280))])(pooled)), "mobilenetv2"
    )
    chunks.write(infer.FEATURES / "mobilenetv2/0.h5", ["0.jpg"], {"pooled": np.ones((1, 1280), np.float32)})
    set_parameters(Path("params.yaml"), {"mobilenetv2.head": "conv"})
    with pytest.raises(Problem, match="the model mobilenetv2 has no head conv; train it again with dvc repro"):
        run("mobilenetv2", monkeypatch)
    with pytest.raises(Problem, match="holds no maps; run dvc repro"):
        chunks.Rows(infer.FEATURES / "mobilenetv2", "maps")


@pytest.mark.usefixtures("images")
def test_a_model_for_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save(networks.scratch(48, 2, [4], 0.0, 2), "scratch")
    with pytest.raises(Problem, match=r"takes pixels of \(48, 48, 3\), data/resized has \(72, 72, 3\)"):
        run("scratch", monkeypatch)
