"""Labelling images with a trained model, as a user would."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import predict
from stages.common import networks, saving
from stages.common.backend import keras
from stages.common.decoding import decode
from stages.common.problem import Problem

LABELS = ["a", "b, c", "d", "e", "f", "g"]


@pytest.fixture
def photos(workspace: Path) -> Path:
    """A trained model, and a folder with two good images, one bad one and a text."""
    keras.utils.set_random_seed(1)
    logits = networks.scratch(72, 2, [4], 0.0, len(LABELS))
    saving.save(
        keras.Model(logits.input, keras.layers.Softmax()(logits.output)), Path("models/scratch/model.keras"), LABELS
    )
    folder = workspace / "photos"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (90, 60), "red").save(folder / "ü 1.jpg")
    Image.new("L", (90, 60), 40).save(folder / "below" / "2.PNG")
    (folder / "3.jpg").write_text("<html>")
    (folder / "readme.txt").write_text("no image")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    predict.main()


def test_a_folder_with_a_bad_image(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "photos", "--csv", "out.csv")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2
    assert all(len(line.rsplit(": ", 1)[1].split("; ")) == 5 for line in lines)
    assert "photos/3.jpg: bad image: cannot identify" in captured.err
    assert "2 images labelled, 1 bad" in captured.err
    table = pd.read_csv("out.csv")
    assert list(table.columns) == ["image", "prediction", "probability", *LABELS]
    assert sorted(table["image"]) == ["photos/below/2.PNG", "photos/ü 1.jpg"]
    np.testing.assert_allclose(table[LABELS].sum(axis=1), 1, atol=1e-5)
    assert (table[LABELS].idxmax(axis=1) == table["prediction"]).all()
    np.testing.assert_array_equal(table[LABELS].max(axis=1), table["probability"])


def test_the_probabilities_are_the_models(photos: Path) -> None:
    model, _ = saving.load(Path("models/scratch/model.keras"))
    ((_, probabilities),) = predict.predict(model, [photos / "ü 1.jpg"])
    expected = model.predict_on_batch(decode(photos / "ü 1.jpg", 72)[None])[0]
    assert isinstance(probabilities, np.ndarray)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_a_model_by_name_and_by_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("scratch", "models/scratch/model.keras"):
        run(monkeypatch, "photos/ü 1.jpg", "--model", model)
    saving.save(networks.scratch(72, 2, [4], 0.0, 3), Path("backbone.keras"), [])
    with pytest.raises(Problem, match="backbone.keras: names 0 labels"):
        run(monkeypatch, "photos", "--model", "backbone.keras")
    with pytest.raises(Problem, match="--csv is 'photos', a folder"):
        run(monkeypatch, "photos", "--csv", "photos")
    with pytest.raises(Problem, match="models/vgg16/model.keras: no such model; train it"):
        run(monkeypatch, "photos", "--model", "vgg16")


def test_nothing_to_label_is_one_problem(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(Problem, match="photos/empty: no image in it"):
        run(monkeypatch, "photos/empty")
    with pytest.raises(Problem, match="none of the images could be decoded"):
        run(monkeypatch, "photos/3.jpg", "photos/absent.jpg", "--csv", "out.csv")
    assert not Path("out.csv").exists()
