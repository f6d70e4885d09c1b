"""Batches, losses, the trainer, the recipes of both kinds of models, and the live curves: small, but the real Keras."""

import json
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from stages.common.dataset.chunks import Rows
from stages.common.evaluation.scores import f1
from stages.common.networks.scratch import scratch
from stages.common.recipes import linear, pretrained
from stages.common.recipes import scratch as scratch_recipe
from stages.common.runtime import parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.live import live_curves
from stages.common.runtime.parameters import Scratch
from stages.common.training.batches import Batches, Part, Shuffle, augment
from stages.common.training.losses import class_weights, make_loss
from stages.common.training.recipe import Trained
from stages.common.training.trainer import Examples, Fit, Phase, Trainer
from tests.conftest import extract_features, pretrained_section, set_parameters


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


def losses_of(imbalance: str, counts: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Any:
    targets = keras.ops.array(np.eye(len(counts), dtype=np.float32)[labels])
    return keras.ops.convert_to_numpy(make_loss(imbalance, counts)(targets, keras.ops.array(logits)))


@pytest.mark.parametrize("imbalance", ["none", "class_weight", "focal", "logit_adjustment"])
def test_losses_are_the_published_ones(imbalance: str) -> None:
    generator = np.random.default_rng(2)
    counts = np.array([80, 15, 5])
    logits = generator.normal(0, 2, (20, 3)).astype(np.float32)
    labels = generator.integers(0, 3, 20)
    expected = numpy_losses(imbalance, counts, labels, logits)
    np.testing.assert_allclose(losses_of(imbalance, counts, labels, logits), expected, rtol=1e-4, atol=1e-5)


def test_focal_loss_is_the_published_one_up_to_the_clipping_of_probabilities() -> None:
    counts, labels = np.array([80, 15, 5]), np.tile(np.arange(3), 201)
    logits = np.zeros((603, 3), np.float32)
    logits[np.arange(603), labels] = np.repeat(np.linspace(-15, 15, 201), 3)
    expected = numpy_losses("focal", counts, labels, logits.astype(np.float64))
    np.testing.assert_allclose(losses_of("focal", counts, labels, logits), expected, rtol=1e-5, atol=1e-6)
    logits[np.arange(603), labels] = -40
    clipped = class_weights(counts)[labels] * -np.log(keras.config.epsilon())
    np.testing.assert_allclose(losses_of("focal", counts, labels, logits), clipped, rtol=1e-5)


def test_class_weights_average_to_one_and_allow_a_label_without_images() -> None:
    counts = np.array([6, 2, 0])
    weights = class_weights(counts)
    assert (weights * counts).sum() == pytest.approx(counts.sum())
    assert weights[2] == 0
    for imbalance in ("class_weight", "focal", "logit_adjustment"):
        value = make_loss(imbalance, counts)(keras.ops.eye(3), keras.ops.ones((3, 3)))
        assert np.isfinite(keras.ops.convert_to_numpy(value)).all()


@pytest.mark.usefixtures("coloured_split")
def test_batches_are_a_function_of_seed_and_epoch() -> None:
    rows = Rows(paths.RESIZED, "pixels")
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


def test_augmentation_keeps_shape_and_type(noise: np.ndarray) -> None:
    results = {augment(noise[0], np.random.default_rng(number)).tobytes() for number in range(20)}
    assert len(results) == 20
    image = augment(noise[0], np.random.default_rng(0))
    assert image.shape == noise[0].shape
    assert image.dtype == np.uint8


@pytest.mark.usefixtures("coloured_split")
def test_an_epochs_loss_and_accuracy_are_means_over_all_its_images(tmp_path: Path) -> None:
    rows = Rows(paths.RESIZED, "pixels")
    part = Part([f"{number}.jpg" for number in range(41)], np.arange(41) % 3)  # five batches of 8 and one of 1
    keras.utils.set_random_seed(2)
    model = scratch(32, 1, [8], 0.0, 3)
    model.layers[-1].set_weights(
        [np.random.default_rng(0).normal(size=weight.shape) for weight in model.layers[-1].weights]
    )
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    trainer = Trainer("train-scratch", tmp_path)
    trainer.fit(model, Examples(rows, part, part), Phase("only", 1, 1, 1e-12, 8, "none", 1))
    (row,) = trainer.epochs
    assert 0.1 < row["accuracy"] < 0.9
    assert row["accuracy"] == pytest.approx(row["validation_accuracy"])
    assert row["loss"] == pytest.approx(row["validation_loss"], rel=1e-4)
    assert trainer.images == 41


@pytest.mark.usefixtures("coloured_split")
def test_a_resumed_training_shows_all_its_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(paths.RESIZED, "pixels")
    part = Part([f"{number}.jpg" for number in range(16)], np.arange(16) % 3)
    for epochs in (2, 3):
        keras.utils.set_random_seed(2)
        shown: list[dict[str, Any]] = []
        trainer = Trainer("train-scratch", tmp_path, shown.append)
        trainer.fit(
            scratch(32, 1, [8], 0.0, 3), Examples(rows, part, part), Phase("only", epochs, 9, 1e-3, 8, "none", 1)
        )
        assert shown == trainer.epochs
        assert [row["epoch"] for row in shown] == list(range(1, epochs + 1))
        assert trainer.images == 16 * epochs
    assert capsys.readouterr().out.count("train-scratch: resuming: 2/3 epochs of phase only done\n") == 1


class RecordingRows(Rows):
    """Also records the names that are read."""

    def __init__(self, folder: Path, dataset: str) -> None:
        super().__init__(folder, dataset)
        self.names: list[str] = []

    def read(self, names: list[str]) -> np.ndarray:
        self.names += names
        return super().read(names)


@pytest.mark.usefixtures("coloured_split")
def test_each_epoch_has_all_images_in_another_order(tmp_path: Path) -> None:
    rows, names = RecordingRows(paths.RESIZED, "pixels"), [f"{number}.jpg" for number in range(20)]
    examples = Examples(rows, Part(names, np.arange(20) % 3), None)
    Trainer("train-scratch", tmp_path).fit(
        scratch(32, 1, [4], 0.0, 3), examples, Phase("only", 3, 9, 1e-3, 8, "none", 1)
    )
    orders = [rows.names[start : start + 20] for start in (0, 20, 40)]
    assert [sorted(order) for order in orders] == [sorted(names)] * 3
    assert len(rows.names) == 60
    assert len({tuple(order) for order in [names, *orders]}) == 4


class InterruptedTrainingError(Exception):
    pass


def train_epochs(epochs: int, folder: Path, width: int = 8, interrupted: int = 0) -> list[np.ndarray]:
    """The last weights of a phase with everything random, which resumes from a checkpoint in `folder`.

    If `interrupted`, it ends in that epoch, before the checkpoint.
    """

    def show(row: dict[str, Any]) -> None:
        if row["epoch"] == interrupted:
            raise InterruptedTrainingError

    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(2)
    model = scratch(32, 1, [width], 0.5, 3)
    part = Part([f"{number}.jpg" for number in range(24)], np.arange(24) % 3)
    examples = Examples(Rows(paths.RESIZED, "pixels"), part, None)
    phase = Phase("only", epochs, 9, 1e-2, 8, "focal", 1, augment=True)
    Trainer("train-scratch", folder, show).fit(model, examples, phase)
    weights: list[np.ndarray] = model.get_weights()
    return weights


@pytest.mark.usefixtures("coloured_split")
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    with pytest.raises(InterruptedTrainingError):
        train_epochs(4, tmp_path / "resumed", interrupted=3)
    with np.load(tmp_path / "resumed/only.npz") as stored:
        assert len(json.loads(str(stored["run"]))["epochs"]) == 2
    for resumed, whole in zip(train_epochs(4, tmp_path / "resumed"), train_epochs(4, tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(resumed, whole)


@pytest.mark.usefixtures("coloured_split")
def test_the_rate_decays_to_0_over_all_epochs(tmp_path: Path) -> None:
    part = Part([f"{number}.jpg" for number in range(24)], np.arange(24) % 3)
    model, phase = scratch(32, 1, [4], 0.0, 3), Phase("only", 4, 9, 1e-2, 8, "none", 1)
    rates: list[float] = []
    Trainer("t", tmp_path, lambda row: rates.append(float(model.optimizer.learning_rate))).fit(
        model, Examples(Rows(paths.RESIZED, "pixels"), part, None), phase
    )
    np.testing.assert_allclose(rates, 0.5e-2 * (1 + np.cos(np.pi * np.arange(1, 5) / 4)), atol=1e-8)


@pytest.mark.usefixtures("coloured_split")
def test_a_damaged_checkpoint_is_discarded_and_the_phase_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train_epochs(2, tmp_path / "expected")
    train_epochs(2, tmp_path / "other", width=4)
    whole = (tmp_path / "expected" / "only.npz").read_bytes()
    damaged = [b"", whole[:100], whole[: len(whole) // 2], (tmp_path / "other" / "only.npz").read_bytes()]
    (tmp_path / "damaged").mkdir()
    for content in damaged:
        (tmp_path / "damaged" / "only.npz").write_bytes(content)
        capsys.readouterr()
        for one, other in zip(train_epochs(2, tmp_path / "damaged"), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        output = capsys.readouterr().out
        assert re.search(r"train-scratch: discarded a damaged checkpoint \(.+\): phase only starts again\n", output)
        assert "resuming" not in output


@pytest.mark.usefixtures("workspace")
def test_curves_that_cannot_be_written_do_not_stop_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"epoch": 1, "phase": "head", "loss": 1.0}
    Path("dvclive").write_text("a file", encoding="utf-8")
    live_curves()(row)
    assert "no live curves, training continues" in capsys.readouterr().out
    Path("dvclive").unlink()
    show = live_curves()
    show(row)
    assert Path("dvclive/plots/metrics/loss.tsv").read_text(encoding="utf-8").splitlines()[1:] == ["1\t1.0"]
    shutil.rmtree("dvclive")
    Path("dvclive").write_text("a file", encoding="utf-8")
    show(row | {"epoch": 2})
    show(row | {"epoch": 3})
    assert capsys.readouterr().out.count("training continues") == 1


@pytest.mark.usefixtures("workspace")
def test_no_server_is_told_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
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
        live_curves()({"epoch": 1, "loss": 1.0})
        server.shutdown()
    assert asked == []


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


def train_scratch(split: pd.DataFrame, section: Scratch) -> tuple[Trained, Trainer]:
    trainer = Trainer("train-scratch", Path(tempfile.mkdtemp(dir=Path.cwd())))
    return scratch_recipe.train("scratch", section, 5, split, trainer), trainer


def macro_f1(trained: Trained, images: pd.DataFrame) -> float:
    """Of a trained model on the pixels of `images`, by Keras's own loop over batches."""
    pixels = Rows(paths.RESIZED, "pixels").read(list(images["image"]))
    predictions = trained.model.predict(pixels, verbose=0).argmax(axis=1)
    return f1(images["label"].to_numpy(), np.array(trained.labels)[predictions], "macro")


@pytest.mark.slow
@pytest.mark.parametrize("imbalance", ["none", "class_weight", "focal", "logit_adjustment"])
def test_scratch_learns_and_keeps_its_best_epoch(coloured_split: pd.DataFrame, imbalance: str) -> None:
    trained, trainer = train_scratch(coloured_split, scratch_section(imbalance=imbalance))
    assert trained.labels == ["a", "b", "c"]
    assert trained.validation_macro_f1 == max(row["validation_macro_f1"] for row in trainer.epochs) > 0.6
    validation = coloured_split[coloured_split["part"] == "validation"]
    assert macro_f1(trained, validation) == pytest.approx(trained.validation_macro_f1)


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(coloured_split: pd.DataFrame) -> None:
    first, second = (train_scratch(coloured_split, scratch_section(epochs=2))[0].model.get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_training_stops_without_improvement(coloured_split: pd.DataFrame) -> None:
    section = scratch_section(learning_rate=1e-12, epochs=9, patience=2, augment=False)
    assert len(train_scratch(coloured_split, section)[1].epochs) < 9


@pytest.mark.slow
def test_an_infinite_loss_is_a_user_error(coloured_split: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def exploding(*args: Any) -> keras.Model:
        model = scratch(*args)
        model.layers[-1].kernel.assign(model.layers[-1].kernel * float("inf"))
        return model

    monkeypatch.setattr(scratch_recipe, "scratch", exploding)
    with pytest.raises(UserError, match="loss of epoch 1 is not finite; nothing is saved"):
        train_scratch(coloured_split, scratch_section())


def test_a_part_whose_images_all_failed_is_a_user_error(coloured_split: pd.DataFrame) -> None:
    coloured_split.loc[coloured_split["part"] == "validation", "image"] += ".bad"
    with pytest.raises(UserError, match="no validation image that could be decoded"):
        train_scratch(coloured_split, scratch_section())


def test_auto_weights_follow_from_the_data_alone(workspace: Path) -> None:
    (workspace / "photos").mkdir()
    (workspace / "x.h5").touch()
    expected = {
        ("auto", paths.SAMPLE): "random",
        ("auto", f"./{paths.SAMPLE}/../sample"): "random",
        ("auto", paths.MPII): "imagenet",
        ("auto", "photos"): "imagenet",
        ("imagenet", paths.SAMPLE): "imagenet",
        ("x.h5", paths.SAMPLE): "x.h5",
        ("random", "photos"): "random",
    }
    for (weights, data), initial in expected.items():
        set_parameters(workspace / "params.yaml", {"weights": weights, "data": data})
        assert parameters.load().initial_weights("xception") == initial


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "conv"])
def test_heads_learn_on_features_and_fine_tuning_keeps_it(
    coloured_split: pd.DataFrame, tmp_path: Path, head: str
) -> None:
    section = pretrained_section(head=head)
    extract_features(section)
    trainer = Trainer("train-backbone", tmp_path)
    trained = pretrained.train("backbone", section, 5, coloured_split, trainer)
    assert [row["phase"] for row in trainer.epochs].count("fine-tuning") == 2
    assert [row["epoch"] for row in trainer.epochs] == list(range(1, len(trainer.epochs) + 1))
    heads = [row["validation_macro_f1"] for row in trainer.epochs if row["phase"] == "head"]
    assert trained.validation_macro_f1 >= max(heads) > 0.5
    validation = coloured_split[coloured_split["part"] == "validation"]
    assert macro_f1(trained, validation) == pytest.approx(trained.validation_macro_f1)
    assert not any(isinstance(layer, keras.Model) for layer in trained.model.layers)


@dataclass
class CountingTrainer(Trainer):
    """Also records the number of training images of each phase."""

    counts: list[int] = field(default_factory=list)

    def fit(self, model: keras.Model, examples: Examples, phase: Phase, min_f1: float = -1.0) -> Fit:
        self.counts.append(len(examples.train.names))
        return super().fit(model, examples, phase, min_f1)

    def record(self, model: keras.Model, examples: Examples, phase: Phase, seconds: float) -> Fit:
        self.counts.append(len(examples.train.names))
        return super().record(model, examples, phase, seconds)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "conv"])
def test_a_refit_trains_as_many_epochs_as_were_best_on_both_parts(
    coloured_split: pd.DataFrame, tmp_path: Path, head: str
) -> None:
    section = pretrained_section(head=head, refit=True, epochs=4, fine_tune_epochs=2, fine_tune_learning_rate=0.01)
    extract_features(section)
    trainer = CountingTrainer("train-backbone", tmp_path)
    trained = pretrained.train("backbone", section, 5, coloured_split, trainer)
    scores = [row["validation_macro_f1"] for row in trainer.epochs if row["phase"] == "head"]
    again = [row for row in trainer.epochs if row["phase"] == "refit-head"]
    assert len(again) == int(np.argmax(scores)) + 1
    assert not any("validation_macro_f1" in row for row in again)
    tuned = [row["validation_macro_f1"] for row in trainer.epochs if row["phase"] == "fine-tuning"]
    wanted = int(np.argmax(tuned)) + 1 if max(tuned) > max(scores) else 0
    assert [row["phase"] for row in trainer.epochs].count("refit-fine-tuning") == wanted
    assert trained.validation_macro_f1 == max(scores + tuned)
    assert trainer.counts[:3] == [24, 24, 36]


@pytest.mark.parametrize("imbalance", ["none", "class_weight"])
@pytest.mark.parametrize("labels", [2, 4])
def test_the_solver_finds_the_optimum_of_the_loss(labels: int, imbalance: str) -> None:
    generator = np.random.default_rng(labels)
    features, targets = generator.normal(size=(200, 6)), generator.integers(0, labels, 200) ** 2 // labels
    targets[:labels] = range(labels)
    counts, l2 = np.bincount(targets, minlength=labels), 3.0
    weights, bias, _ = linear.solve(features, targets, labels, imbalance, l2)

    def objective(values: np.ndarray) -> float:
        matrix, offset = values[: weights.size].reshape(weights.shape), values[weights.size :]
        return float(
            numpy_losses(imbalance, counts, targets, features @ matrix + offset).sum() + l2 / 2 * (matrix**2).sum()
        )

    found = np.concatenate([weights.ravel(), bias])
    slope = approx_fprime(found, objective, 1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-3)


def test_a_label_without_training_images_is_never_predicted() -> None:
    generator = np.random.default_rng(0)
    weights, bias, _ = linear.solve(generator.normal(size=(30, 4)), np.arange(30) % 3 + 1, 5, "none", 1.0)
    predicted = (generator.normal(size=(99, 4)) @ weights + bias).argmax(axis=1)
    assert set(predicted) == {1, 2, 3}


@pytest.mark.slow
def test_the_head_is_scikit_learns_logistic_regression(coloured_split: pd.DataFrame, tmp_path: Path) -> None:
    section = pretrained_section(l2=20.0, fine_tune_epochs=0, imbalance="class_weight")
    extract_features(section)
    trainer = Trainer("train-backbone", tmp_path)
    trained = pretrained.train("backbone", section, 5, coloured_split, trainer)
    model, labels = trained.whole(), trained.labels
    pooled = Rows(paths.features("backbone"), "pooled").read(list(coloured_split["image"]))
    used = (coloured_split["part"] == "train").to_numpy()
    pooled = pooled.astype(np.float64)
    variance = np.maximum(pooled[used].var(axis=0), 1e-2 * pooled[used].var(axis=0).mean())
    standardised = (pooled - pooled[used].mean(axis=0)) / np.sqrt(variance)
    theirs = LogisticRegression(C=1 / 20, class_weight="balanced", tol=1e-8, max_iter=5000)
    theirs.fit(standardised[used], coloured_split.loc[used, "label"])
    logits = keras.Model(model.get_layer("features").output, model.output).predict_on_batch(pooled)
    assert list(theirs.classes_) == labels
    np.testing.assert_allclose(softmax(logits, axis=1), theirs.predict_proba(standardised), atol=1e-4)


@pytest.mark.slow
def test_a_head_that_did_not_reach_its_optimum_says_so(
    coloured_split: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = pretrained_section(fine_tune_epochs=0)
    extract_features(section)
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    pretrained.train("backbone", section, 5, coloured_split, Trainer("train-backbone", tmp_path))
    assert "warning: not at the optimum after 1 iterations; raise backbone.l2" in capsys.readouterr().out
