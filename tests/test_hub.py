"""Backbones of KerasHub, from presets that are saved here: small, with random weights."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest

from stages import features
from stages.common.backbones.backbone import backbone, inline
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.backbones.catalog import find
from stages.common.dataset import chunks
from stages.common.networks.serialization import load, save
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from tests.conftest import Finished, set_parameters

MODELS: dict[str, Callable[[], Any]] = {
    "vit": lambda: keras_hub.models.ViTBackbone((32, 32, 3), 8, 2, 2, 16, 32),
    "vit without class token": lambda: keras_hub.models.ViTBackbone(
        (32, 32, 3), 8, 1, 2, 16, 32, use_class_token=False
    ),
    "deit": lambda: keras_hub.models.DeiTBackbone((32, 32, 3), 8, 2, 2, 16, 32),
    "dinov2": lambda: keras_hub.models.DINOV2Backbone(
        14, 2, 16, 2, 32, num_register_tokens=2, image_shape=(28, 28, 3), position_embedding_shape=(28, 28, 3)
    ),
    "dinov3": lambda: keras_hub.models.DINOV3Backbone(8, 2, 16, 2, 32, image_shape=(32, 32, 3)),
    "swin": lambda: keras_hub.models.SwinTransformerBackbone((32, 32, 3), 8, [1, 1], [1, 2], 4),
    "siglip": lambda: keras_hub.models.SigLIPVisionEncoder(8, 16, 2, 2, 32, image_shape=(32, 32, 3)),
    "resnet": lambda: keras_hub.models.ResNetBackbone([64], [7], [64, 64], [1, 1], [1, 2], "basic_block"),
    "densenet": lambda: keras_hub.models.DenseNetBackbone([1, 1], image_shape=(32, 32, 3)),
}
CNNS = ("resnet", "densenet")
SCALE, OFFSET = [1 / 50, 1 / 60, 1 / 70], [-2.0, -1.0, 0.5]


@pytest.fixture(autouse=True)
def _keras_as_at_its_start() -> None:
    """Variables of models that other tests failed to build would be initialised together with those of the preset."""
    keras.utils.clear_session()


def preset(folder: Path, kind: str) -> Any:
    """Save a preset of random weights, with an image converter, into `folder`; the network."""
    keras.utils.set_random_seed(len(kind))
    made = MODELS[kind]()
    made.save_to_preset(str(folder))
    converters = [each for each in keras_hub.layers.ImageConverter.__subclasses__() if each.backbone_cls is type(made)]
    for converter in converters:
        converter(image_size=(36, 36), scale=SCALE, offset=OFFSET, interpolation="bicubic").save_to_preset(str(folder))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_a_preset_becomes_a_model_that_is_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: np.ndarray, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    original = preset(tmp_path / "preset", kind)
    model = backbone(find(f"hub:{tmp_path / 'preset'}"), 72, None, "imagenet", noise)
    assert not model.trainable_weights
    found = model.predict_on_batch(noise)
    assert found.ndim == (4 if kind in CNNS else 2)
    for one, other in zip(original.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    save(model, tmp_path / "a.keras", [])
    np.testing.assert_array_equal(load(tmp_path / "a.keras")[0].predict_on_batch(noise), found)
    folded = fold_batch_norm(inline(model))
    np.testing.assert_allclose(folded.predict_on_batch(noise), found, atol=1e-5 * np.abs(found).max(), rtol=1e-4)
    folds = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in inline(model).layers)
    assert (sum(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers) < folds) == (
        kind in CNNS
    )


def expected_features(kind: str, tokens: np.ndarray) -> np.ndarray:
    if kind in ("vit", "deit"):
        return tokens[:, 0]
    if kind.startswith("dino"):
        registers = {"dinov2": 2, "dinov3": 4}[kind]
        return np.concatenate([tokens[:, 0], tokens[:, 1 + registers :].mean(axis=1)], axis=1)
    mean: np.ndarray = tokens.mean(axis=1)
    return mean


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "vit without class token", "deit", "dinov2", "dinov3", "swin"])
def test_the_pixels_are_converted_and_the_tokens_pooled_as_the_authors_do(
    tmp_path: Path, noise: np.ndarray, kind: str
) -> None:
    original = preset(tmp_path, kind)
    side = original.image_shape[0]
    model = backbone(find(f"hub:{tmp_path}"), 72, None, "imagenet", noise)
    resized = keras.ops.image.resize(noise.astype(np.float32), (side, side), interpolation="bicubic")
    scaled = resized * np.array(SCALE) + np.array(OFFSET)
    inputs = dict.fromkeys(original.input, scaled) if isinstance(original.input, dict) else scaled
    tokens = keras.ops.convert_to_numpy(original(inputs))
    np.testing.assert_allclose(model.predict_on_batch(noise), expected_features(kind, tokens), atol=2e-4)


@pytest.mark.slow
def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("no_such_preset", str(tmp_path)):
        with pytest.raises(UserError, match=rf"backbone.name is 'hub:{name}', which KerasHub can't load"):
            backbone(find(f"hub:{name}"), 72, None, "imagenet", noise)
    preset(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match="can't load .* expected with input_size auto, or the name of a preset"):
        backbone(find(f"hub:{tmp_path / 'vit'}"), 72, 33, "imagenet", noise)
    (tmp_path / "vit/image_converter.json").unlink()
    backbone(find(f"hub:{tmp_path / 'vit'}"), 72, None, "imagenet", noise)
    assert "has no image converter" in capsys.readouterr().out
    text = keras_hub.models.BertBackbone(9, 1, 2, 4, 8)
    text.save_to_preset(str(tmp_path / "bert"))
    with pytest.raises(UserError, match="a BertBackbone of 3 inputs; expected a network from one image"):
        backbone(find(f"hub:{tmp_path / 'bert'}"), 72, None, "imagenet", noise)


@pytest.mark.slow
def test_random_weights_are_other_ones_and_always_the_same(tmp_path: Path, noise: np.ndarray) -> None:
    original = preset(tmp_path, "resnet")
    first, second = (backbone(find(f"hub:{tmp_path}"), 72, None, "random", noise) for _ in range(2))
    assert not np.array_equal(first.get_weights()[0], original.get_weights()[0])
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 1e-2 < first.predict_on_batch(noise).std() < 1e2


@pytest.mark.slow
def test_maps_of_tokens_are_refused_and_a_model_without_keras_hub_names_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, noise: np.ndarray
) -> None:
    preset(workspace / "vit", "vit")
    chunks.write(paths.RESIZED / "00000.h5", [f"{number}.jpg" for number in range(8)], {"pixels": noise})
    changes = {"backbone.name": "hub:vit", "backbone.input_size": "auto", "backbone.head": "conv"}
    set_parameters(paths.PARAMETERS, changes)
    monkeypatch.setattr(sys, "argv", ["features", "backbone"])
    with pytest.raises(UserError, match="vit has no feature maps, which head conv needs; set backbone.head to softmax"):
        features.main()
    set_parameters(paths.PARAMETERS, {"backbone.head": "softmax"})
    features.main()
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(UserError, match="a network of KerasHub; pip install -r requirements-hub.txt"):
        load(paths.backbone("backbone"))


@pytest.mark.slow
def test_the_pipeline_runs_with_a_preset_and_predict_uses_its_model(finished: Finished, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "clone")
    preset(clone.path / "preset", "resnet")
    clone.set(model="backbone", backbone__name="hub:preset", backbone__input_size="auto")
    clone.set(backbone__fine_tune_epochs=1, backbone__refit=False)
    shown = clone.run("dvc", "repro")
    assert "features-backbone: preset, imagenet weights" in shown
    assert "(fine-tuning)" in shown
    assert "explain: heat maps of" in shown
    assert json.loads((clone.path / "metrics/evaluation.json").read_text())["model"] == "backbone"
    image = next((clone.path / "data/raw/sample/images").iterdir())
    assert image.name in clone.run(sys.executable, "-m", "commands.predict", str(image))
