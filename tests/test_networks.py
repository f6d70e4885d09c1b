"""Backbones, batch normalisation, heads and the CNN from scratch: small, but real Keras networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common.backbones.backbone import backbone, inline
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.backbones.catalog import NETWORKS
from stages.common.networks.heads import make_head
from stages.common.networks.scratch import scratch
from stages.common.recipes.pretrained import unfreeze
from stages.common.runtime.backend import device, keras
from stages.common.runtime.errors import UserError

PREPROCESSING = {
    "densenet121": keras.applications.densenet.preprocess_input,
    "vgg16": keras.applications.vgg16.preprocess_input,
    "xception": keras.applications.xception.preprocess_input,
    "mobilenet": keras.applications.mobilenet.preprocess_input,
    "mobilenetv2": keras.applications.mobilenet_v2.preprocess_input,
    "resnet50v2": keras.applications.resnet_v2.preprocess_input,
}
# One of each kind, and what networks are made of: nested Sequentials, branches, concatenations, own preprocessing.
TRIED = (
    *("vgg16", "xception", "mobilenet", "mobilenetv2", "resnet50v2", "densenet121"),
    *("efficientnet_lite0", "convnext_tiny", "efficientnetv2b0", "mobilenetv3small"),
)


@pytest.fixture(scope="module")
def backbones(noise: np.ndarray) -> dict[str, keras.Model]:
    def one_block(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
        images = keras.Input(input_shape)
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, 2, use_bias=False)(images))
        x = keras.layers.ReLU()(x)
        new = keras.layers.Conv2D(4, 3, padding="same")(keras.layers.BatchNormalization()(x))
        x = keras.layers.BatchNormalization()(keras.layers.Concatenate()([x, new]))
        return keras.Model(images, x)

    with pytest.MonkeyPatch.context() as patch:
        # To build its 427 layers takes as long as all the others.
        patch.setattr(keras.applications, "DenseNet121", one_block)
        return {name: backbone(NETWORKS[name], 72, 72, "random", noise) for name in {*PREPROCESSING, *TRIED}}


@pytest.fixture(scope="module")
def maps(backbones: dict[str, keras.Model], noise: np.ndarray) -> dict[str, np.ndarray]:
    return {name: backbones[name].predict_on_batch(noise) for name in TRIED}


def output_of(model: keras.Model, layer: str) -> keras.Model:
    """From the images to a layer without weights."""
    copy = keras.models.clone_model(model)  # the layers of `model` are also in the network that it was made of
    return keras.Model(copy.input, copy.get_layer(layer).output)


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPROCESSING)
def test_a_backbone_is_flat_frozen_and_preprocesses_as_its_authors_did(
    backbones: dict[str, keras.Model], noise: np.ndarray, name: str
) -> None:
    model = backbones[name]
    assert model.input.dtype == "uint8"
    assert not model.trainable_weights
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    scaled = output_of(model, "scale").predict_on_batch(noise)
    np.testing.assert_allclose(scaled, PREPROCESSING[name](noise.astype("float32")), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_random_weights_keep_the_signal_alive(maps: dict[str, np.ndarray], name: str) -> None:
    assert 1e-2 < maps[name].std() < 1e2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenetv2"])
def test_random_weights_are_always_the_same(backbones: dict[str, keras.Model], noise: np.ndarray, name: str) -> None:
    again = backbone(NETWORKS[name], 72, 72, "random", noise)
    for first, second in zip(backbones[name].get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_a_folded_backbone_is_the_same_function(
    backbones: dict[str, keras.Model], maps: dict[str, np.ndarray], noise: np.ndarray, name: str
) -> None:
    folded = fold_batch_norm(inline(backbones[name]))
    left = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    # Those that follow no convolution directly.
    assert left == {"densenet121": 2, "resnet50v2": 17}.get(name, 0)
    expected = maps[name]
    np.testing.assert_allclose(folded.predict_on_batch(noise), expected, atol=1e-4 * np.abs(expected).max())


def test_only_what_directly_follows_a_convolution_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", None)  # no weights are drawn
    folded = fold_batch_norm(model)
    assert [layer.name for layer in folded.layers if isinstance(layer, keras.layers.BatchNormalization)] == [
        "after_relu",
        "of_two_uses",
    ]
    values = generator.normal(size=(5, 16, 16, 3))
    np.testing.assert_allclose(folded.predict_on_batch(values), model.predict_on_batch(values), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_weights_file_is_loaded_and_that_of_another_network_is_refused(
    backbones: dict[str, keras.Model], noise: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = backbones["mobilenetv2"]
    source.save_weights(tmp_path / "mobilenetv2.weights.h5")
    # Weights that are loaded next are not drawn.
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", None)
    loaded = backbone(NETWORKS["mobilenetv2"], 72, 72, str(tmp_path / "mobilenetv2.weights.h5"), noise)
    np.testing.assert_array_equal(loaded.predict_on_batch(noise), source.predict_on_batch(noise))
    (tmp_path / "nonsense.weights.h5").write_bytes(b"no HDF5")
    for other in ("mobilenetv2.weights.h5", "nonsense.weights.h5"):
        with pytest.raises(UserError, match=rf"weights: .*{other} is not a weights file of VGG16"):
            backbone(NETWORKS["vgg16"], 72, 72, str(tmp_path / other), noise)


@pytest.mark.slow
def test_imagenet_weights_that_cannot_be_downloaded_say_what_to_set(
    noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> keras.Model:
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.applications, "VGG16", fail)
    with pytest.raises(UserError, match="ImageNet weights of VGG16 can't be loaded .* set weights to random or"):
        backbone(NETWORKS["vgg16"], 72, 72, "imagenet", noise)


def test_a_backbone_enlarges_its_images(noise: np.ndarray) -> None:
    model = backbone(NETWORKS["mobilenetv2"], 72, 96, "random", noise)
    assert model.input.shape == (None, 72, 72, 3)
    assert model.output.shape == (None, 3, 3, 1280)
    resized = output_of(model, "resize").predict_on_batch(noise)
    enlarged = keras.ops.image.resize(noise.astype(np.float32), (96, 96), interpolation="bilinear")
    np.testing.assert_allclose(resized, enlarged, atol=1e-3)


def test_unfreezing_skips_batch_normalisation(noise: np.ndarray) -> None:
    model = backbone(NETWORKS["mobilenetv2"], 72, 72, "random", noise)
    unfreeze(model, 6)
    free = [layer for layer in model.layers if layer.trainable_weights]
    assert 0 < len(free) < 6
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in free)
    assert free[-1].name == "Conv_1"


@pytest.mark.parametrize(("filters", "pool"), [([4], 1), ([4, 8, 16], 2), ([8, 4, 4, 4], 4)])
def test_scratch_networks_of_any_depth_and_width(filters: list[int], pool: int) -> None:
    model = scratch(72, pool, filters, 0.1, 5)
    assert model.output.shape == (None, 5)
    assert [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)] == filters


@pytest.mark.parametrize(("kind", "shape"), [("softmax", (5,)), ("conv", (3, 3, 5))])
def test_a_head_shares_its_weights_between_its_uses(kind: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    head = make_head(kind, 2, 0.1, [generator.uniform(size=(8, 5))])
    one, other = (keras.Model(features, head(features)) for features in (keras.Input(shape), keras.Input(shape)))
    one.set_weights([generator.normal(size=weight.shape) ** 2 for weight in one.get_weights()])
    values = generator.uniform(size=(4, *shape))
    np.testing.assert_array_equal(other.predict_on_batch(values), one.predict_on_batch(values))
    assert np.ptp(one.predict_on_batch(values), axis=0).min() > 1e-3


def test_the_device_is_named() -> None:
    assert f"Keras {keras.version()} on {keras.backend.backend()}" in device()
