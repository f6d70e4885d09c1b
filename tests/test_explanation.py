"""Heat maps: exact for each kind of head, where the thing is, and as pictures beside the photographs."""

import numpy as np
import pytest

from stages.common.explanation.heat_maps import explained, heat_maps
from stages.common.explanation.overlay import overlay
from stages.common.networks.heads import make_head
from stages.common.networks.scratch import encoder, scratch
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.train import with_probabilities

SIZE = 64


def model_of(kind: str) -> keras.Model:
    keras.utils.set_random_seed(1)
    if kind == "scratch":
        return with_probabilities(scratch(SIZE, 2, [4, 8], 0.5, 3), "model")
    base = encoder(SIZE, 2, [4, 8])
    pooled = np.random.default_rng(0).random((20, 8))
    features = keras.layers.GlobalAveragePooling2D()(base.output) if kind == "softmax" else base.output
    return with_probabilities(keras.Model(base.input, make_head(kind, 3, 0.1, [pooled])(features)), "model")


def test_a_backbone_in_bfloat16_has_heat_maps() -> None:
    base = encoder(SIZE, 2, [4, 8])
    maps = keras.layers.Activation("linear", dtype="bfloat16")(base.output)
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32")(maps)
    head = make_head("softmax", 3, 0.1, [np.random.default_rng(0).random((20, 8))])
    found = heat_maps(explained(keras.Model(base.input, head(pooled)), "model"), np.zeros((1, SIZE, SIZE, 3), np.uint8))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", ["scratch", "softmax", "conv"])
def test_the_contributions_of_all_places_are_the_logits(kind: str) -> None:
    model = model_of(kind)
    images = np.random.default_rng(0).integers(0, 255, (3, SIZE, SIZE, 3), dtype=np.uint8)
    parts = explained(model, "model")
    found = heat_maps(parts, images)
    assert found.shape[:2] == (3, 3)
    logits = np.log(model.predict_on_batch(images))
    sums = found.sum(axis=(2, 3))
    # But for a constant of each label, which no place contributes: the difference of two images has none.
    np.testing.assert_allclose(
        np.diff(sums, axis=0), np.diff(logits - logits.mean(axis=1, keepdims=True), axis=0), atol=1e-4
    )


def test_for_averaged_maps_it_is_the_class_activation_map() -> None:
    model = model_of("softmax")
    images = np.random.default_rng(0).integers(0, 255, (2, SIZE, SIZE, 3), dtype=np.uint8)
    maps = keras.Model(model.input, model.get_layer("relu2").output).predict_on_batch(images)
    weights = model.get_layer("logits").get_weights()[0]
    deviation = np.sqrt(np.asarray(model.get_layer("head_standardise").variance)).ravel()
    by_hand = np.einsum("nhwc,ck->nkhw", maps / deviation, weights - weights.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(heat_maps(explained(model, "model"), images), by_hand / maps[0, ..., 0].size, atol=1e-5)


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey noise with a red or a green square: images, labels, and the squares' centres as fractions."""
    generator = np.random.default_rng(seed)
    images = generator.integers(90, 160, (count, SIZE, SIZE, 3), dtype=np.uint8)
    labels, corners = generator.integers(0, 2, count), generator.integers(0, SIZE - 16, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        image[top : top + 16, left : left + 16] = (230, 40, 40) if label == 0 else (40, 230, 40)
    return images, labels, (corners + 8) / SIZE


def test_the_map_follows_the_thing() -> None:
    keras.utils.set_random_seed(1)
    base = encoder(SIZE, 1, [8, 8, 8])
    pooled = keras.layers.GlobalAveragePooling2D()(base.output)
    logits = keras.Model(base.input, keras.layers.Dense(2, name="logits")(pooled))
    logits.compile(keras.optimizers.Adam(0.02), keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels, _ = squares(128, 0)
    for _ in range(12):
        logits.train_on_batch(images, np.eye(2)[labels])
    images, labels, centres = squares(32, 1)
    assert (logits.predict_on_batch(images).argmax(axis=1) == labels).mean() > 0.9
    found = np.maximum(heat_maps(explained(logits, "model"), images)[np.arange(32), labels], 0)
    height, width = found.shape[1:]
    mass = found / found.sum(axis=(1, 2), keepdims=True)
    rows = (mass.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / height
    columns = (mass.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / width
    assert np.corrcoef(rows, centres[:, 0])[0, 1] > 0.9
    assert np.corrcoef(columns, centres[:, 1])[0, 1] > 0.9


def test_a_model_without_feature_maps_is_one_line() -> None:
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    patches = keras.layers.Reshape((-1, 3))(keras.layers.Rescaling(1 / 255)(images))
    attended = keras.layers.MultiHeadAttention(1, 2)(patches[:, ::64], patches[:, ::64])
    logits = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling1D()(attended))
    with pytest.raises(UserError, match="vit: it has no feature maps .*; no heat map is possible"):
        explained(keras.Model(images, logits), "vit")


def test_an_overlay_is_brightest_where_the_evidence_is() -> None:
    heat = np.zeros((4, 4))
    heat[1, 2], heat[3, 3] = 2.0, -5.0
    picture = np.full((80, 120, 3), 100, np.uint8)
    shown = overlay(picture, heat).astype(int)
    assert shown.shape == picture.shape
    brightness = shown.sum(axis=2)
    top, left = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (20 <= top < 40, 60 <= left < 90) == (True, True)
    assert brightness[70, 110] == brightness[5, 5]  # evidence against is none for
    np.testing.assert_array_equal(overlay(picture, -heat * 0), overlay(picture, np.zeros((4, 4))))
