"""Learning without labels: the loss, the views, which images are seen, the encoder, and the model that starts from it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import chunked_resize, cross_validate, infer, pretrain, train
from stages.common.dataset import chunks
from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import without_labels
from stages.common.networks.scratch import encoder
from stages.common.networks.serialization import load
from stages.common.pretraining import pretrainer
from stages.common.pretraining.vicreg import VICReg, covariance, invariance, spread
from stages.common.pretraining.views import Strength, Views, view
from stages.common.recipes import linear
from stages.common.runtime import parameters, paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from tests.conftest import ROOT, set_parameters

SIDE = 72


def numpy_vicreg(first: np.ndarray, second: np.ndarray) -> float:
    """The authors' published code, in NumPy: it halves the variance term over both views."""

    def off_diagonal(matrix: np.ndarray) -> Any:
        return (matrix**2).sum() - (np.diagonal(matrix) ** 2).sum()

    deviations = [np.sqrt(z.var(axis=0, ddof=1) + 1e-4) for z in (first, second)]
    variance = sum(np.maximum(0, 1 - deviation).mean() for deviation in deviations) / 2
    covariances = sum(off_diagonal(np.cov(z, rowvar=False)) / z.shape[1] for z in (first, second))
    return float(25 * ((first - second) ** 2).mean() + 25 * variance + covariances)


def test_the_loss_is_the_published_one() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, (0.5, 1, 2, 0.1), (2, 12, 4)).astype(np.float32)
    both = keras.ops.array(np.concatenate([first, second]))
    loss = VICReg()(keras.ops.zeros((24, 1)), both)
    assert float(loss) == pytest.approx(numpy_vicreg(first, second), rel=1e-5)
    assert float(invariance(None, both)) == pytest.approx(((first - second) ** 2).mean(), rel=1e-5)
    equal = keras.ops.ones((24, 4))
    assert float(spread(None, equal)) == pytest.approx(0.01)
    assert float(covariance(None, equal)) == 0


def halves(size: int = SIDE) -> np.ndarray:
    """An image that is red on the left and blue on the right."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:, : size // 2, 0] = image[:, size // 2 :, 2] = 200
    return image


def test_a_view_is_a_crop_that_is_mirrored_half_of_the_time() -> None:
    seen = [view(halves(), 36, Strength(1, 0), np.random.default_rng(number)) for number in range(60)]
    mirrored = [bool(crop.pixels[18, 0, 2] > crop.pixels[18, -1, 2]) for crop in seen]
    assert 15 < sum(mirrored) < 45
    for crop in seen:  # without a change of colours
        np.testing.assert_array_equal(crop.colours, np.eye(3, 4, dtype=np.float32))
    small = [view(halves(), 36, Strength(0.05, 0), np.random.default_rng(number)).pixels for number in range(60)]
    red = [(crop[..., 0] > crop[..., 2]).mean() for crop in small]
    assert min(red) == 0
    assert max(red) == 1


def test_the_colours_of_a_view_are_brightness_contrast_and_saturation() -> None:
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    greys = 0
    for number in range(40):
        pixels, colours = view(image, 36, Strength(1, 0.4), np.random.default_rng(number))
        changed = pixels.reshape(-1, 3) @ colours[:, :3].T + colours[:, 3]
        greys += bool(np.ptp(changed, axis=1).max() < 1e-3)
        mean = pixels.reshape(-1, 3).mean(axis=0) @ (0.299, 0.587, 0.114)
        # Contrast turns about the mean grey, which brightness alone moves: by 0.6 to 1.4.
        assert 0.59 < (changed @ (0.299, 0.587, 0.114)).mean() / mean < 1.41
    assert 2 < greys < 16


def test_views_are_a_function_of_seed_epoch_and_image(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(10)]
    pixels = np.random.default_rng(0).integers(0, 255, (10, SIDE, SIDE, 3), dtype=np.uint8)
    chunks.write(tmp_path / "0.h5", names, {"pixels": pixels})

    def epoch(seed: int, number: int) -> list[Any]:
        views = Views(Rows(tmp_path, "pixels"), names, 36, 4, Strength(0.3, 0.4), seed)
        assert len(views) == 2
        return list(views.epoch(number))

    first = epoch(1, 0)
    assert [batch.pixels.shape for batch in first] == [(8, 36, 36, 3)] * 2
    for one, other in zip(first, epoch(1, 0), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.colours, other.colours)
    for others in (epoch(1, 1), epoch(2, 0)):
        assert any((one.pixels != other.pixels).any() for one, other in zip(first, others, strict=True))
    assert (first[0].pixels[:4] != first[0].pixels[4:]).any(axis=(1, 2, 3)).all()
    # The views of an image do not depend on which others there are.
    alone = [list(Views(Rows(tmp_path, "pixels"), [name], 36, 4, Strength(0.3, 0.4), 1).epoch(0)) for name in names]
    assert {batch.pixels.tobytes() for (batch,) in alone} >= {
        np.stack([batch.pixels[row], batch.pixels[4 + row]]).tobytes() for batch in first for row in range(4)
    }


def test_no_image_of_another_part_is_learned_from() -> None:
    split = pd.DataFrame(
        [
            ("train.jpg", "train", "a", "1"),
            ("same video.jpg", "unlabelled", "", "1"),
            ("no video.jpg", "unlabelled", "", ""),
            ("validation.jpg", "validation", "a", "2"),
            ("of the validation video.jpg", "unlabelled", "", "2"),
            ("test.jpg", "test", "a", "3"),
            ("of the test video.jpg", "unlabelled", "", "3"),
            ("given.jpg", "held_out", "", "4"),
            ("of its video.jpg", "unlabelled", "", "4"),
        ],
        columns=["image", "part", "label", "video"],
    )
    assert without_labels(split) == ["no video.jpg", "same video.jpg", "train.jpg"]


@pytest.fixture
def ready(workspace: Path) -> Path:
    """Images of two labels, some unlabelled, with a further folder: as the stages before leave them."""
    generator = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(48)]
    pixels = generator.integers(0, 255, (48, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[::2, :, :36] //= 4
    part = (["train"] * 4 + ["validation"] * 2 + ["test"] * 2) * 5 + ["unlabelled"] * 8
    label = np.where(np.array(part) == "unlabelled", "", np.array(["dark", "light"] * 24))
    table = pd.DataFrame({"image": names, "part": part, "label": label, "video": ""})
    paths.RESIZED.mkdir(parents=True)
    table.to_csv(paths.SPLIT, index=False)
    paths.PRETRAINING_LIST.write_text("".join(f"{name}\n" for name in without_labels(table)))
    chunks.write(paths.RESIZED / "00000.h5", names[:40], {"pixels": pixels[:40]})
    chunks.write(paths.UNLABELLED / "00000.h5", names[40:], {"pixels": pixels[40:]})
    set_parameters(
        Path("params.yaml"),
        {"model": "selfsupervised", "pretrain.batch_size": 8, "pretrain.epochs": 3, "selfsupervised.filters": [4, 4]},
    )
    return workspace


def digest(path: Path = paths.ENCODER) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewrite(path: Path, change: dict[str, np.ndarray]) -> None:
    """Give images of a chunk other pixels."""
    names, pixels = chunks.read(path, "pixels")
    for name, value in change.items():
        pixels[names.index(name)] = value
    chunks.write(path, names, {"pixels": pixels})
    chunks._open.cache_clear()  # it keeps the file that was replaced


def test_the_encoder_is_the_same_whatever_validation_and_test_images_are(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.main()
    before = digest()
    assert "pretrain-selfsupervised: 28 images, on CPU" in capsys.readouterr().out
    split = pd.read_csv(paths.SPLIT)
    hidden = split.loc[split["part"].isin(["validation", "test"]), "image"]
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    rewrite(paths.RESIZED / "00000.h5", {name: black + number for number, name in enumerate(hidden)})
    pretrain.main()
    assert digest() == before
    rewrite(paths.UNLABELLED / "00000.h5", {"41.jpg": black + 255})
    pretrain.main()
    assert digest() != before


def test_near_copies_of_validation_and_test_images_are_skipped(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.main()
    before = digest()
    capsys.readouterr()
    names, pixels = chunks.read(paths.RESIZED / "00000.h5", "pixels")
    test, validation, train = (pixels[names.index(name)] for name in ("6.jpg", "4.jpg", "0.jpg"))
    smaller = np.asarray(Image.fromarray(test).resize((60, 60)).resize((SIDE, SIDE)))
    copies = {"copy": test, "smaller": smaller, "mirrored": validation[:, ::-1], "brighter": train // 2 + 9}
    extra = {f"extra//{name}.jpg": image for name, image in copies.items()}
    chunks.write(paths.UNLABELLED / "00001.h5", list(extra), {"pixels": np.stack(list(extra.values()))})
    # An unlabelled one of the data set, too.
    rewrite(paths.UNLABELLED / "00000.h5", {"41.jpg": test[:, ::-1]})
    pretrain.main()
    shown = capsys.readouterr().out
    assert "pretrain-selfsupervised: skipped as near-copies of validation or test images: 4\n" in shown
    assert "pretrain-selfsupervised: skipped as near-copies of the data's images, in pretrain.extra: 1\n" in shown
    assert "pretrain-selfsupervised: 27 images, on CPU" in shown
    assert digest() != before
    extra["extra//new.jpg"] = np.random.default_rng(7).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    chunks.write(paths.UNLABELLED / "00001.h5", list(extra), {"pixels": np.stack(list(extra.values()))})
    chunks._open.cache_clear()
    pretrain.main()
    assert "pretrain-selfsupervised: 28 images, on CPU" in capsys.readouterr().out


def test_copies_of_test_images_do_not_change_the_encoder(ready: Path) -> None:
    pretrain.main()
    before = digest()
    names, pixels = chunks.read(paths.RESIZED / "00000.h5", "pixels")
    copies = np.stack([pixels[names.index(name)][:, ::-1] for name in ("6.jpg", "14.jpg")])
    chunks.write(paths.UNLABELLED / "00001.h5", ["extra//a.jpg", "extra//b.jpg"], {"pixels": copies})
    pretrain.main()
    assert digest() == before


def test_the_path_of_the_further_folder_is_not_what_the_encoder_depends_on(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("stages.pretrain.save", kill)  # of the encoder, after the epochs
        with pytest.raises(KilledError):
            pretrain.main()
    (ready / "moved").mkdir()
    set_parameters(Path("params.yaml"), {"pretrain.extra": "moved"})
    pretrain.main()
    assert "pretrain-selfsupervised: resuming: 3/3 epochs done" in capsys.readouterr().out


class KilledError(Exception):
    pass


def test_a_killed_run_resumes_with_the_next_epoch_and_the_same_bytes(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain.main()
    expected, curves = digest(), paths.PRETRAINING_CURVES.read_bytes()
    paths.ENCODER.unlink()
    save = vars(pretrainer)["save"]
    written: list[bool] = []

    def save_twice(*arguments: Any) -> None:
        if len(written) == 2:
            raise KilledError
        save(*arguments)
        written.append(True)

    monkeypatch.setattr(pretrainer, "save", save_twice)
    with pytest.raises(KilledError):
        pretrain.main()
    assert not paths.ENCODER.exists()
    monkeypatch.setattr(pretrainer, "save", save)
    pretrain.main()
    assert "pretrain-selfsupervised: resuming: 2/3 epochs done" in capsys.readouterr().out
    assert (digest(), paths.PRETRAINING_CURVES.read_bytes()) == (expected, curves)
    assert list(paths.ENCODER.parent.glob(".*")) == []


def test_a_damaged_checkpoint_is_discarded(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(model: keras.Model, record: dict[str, Any], path: Path, best: list[np.ndarray]) -> None:
        path.write_bytes(b"damaged")
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(pretrainer, "save", kill)
        with pytest.raises(KilledError):
            pretrain.main()
    pretrain.main()
    assert "discarded a damaged checkpoint" in capsys.readouterr().out
    assert paths.ENCODER.exists()


def test_a_collapse_ends_the_stage_with_what_was_seen(ready: Path) -> None:
    for path in (paths.RESIZED / "00000.h5", paths.UNLABELLED / "00000.h5"):
        names, pixels = chunks.read(path, "pixels")
        # Black, and in no two parts the same.
        chunks.write(path, names, {"pixels": np.zeros_like(pixels)})
    rewrite(paths.RESIZED / "00000.h5", {f"{number}.jpg": np.array(9) for number in range(40) if number % 8 > 3})
    with pytest.raises(
        UserError, match=r"collapsed in epoch 1: .* standard deviation of 0\.0\d+; expected 0.02 or more"
    ):
        pretrain.main()
    assert not paths.ENCODER.exists()


def test_a_rate_that_is_too_high_is_one_line(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrainer, "WEIGHT_DECAY", float("nan"))
    with pytest.raises(
        UserError, match=r"loss of epoch \d is not finite; nothing is saved: lower pretrain.learning_rate"
    ):
        pretrain.main()
    assert not paths.ENCODER.exists()


def test_without_epochs_the_weights_are_random(ready: Path) -> None:
    set_parameters(Path("params.yaml"), {"pretrain.epochs": 0})
    pretrain.main()
    model, labels = load(paths.ENCODER)
    assert labels == []
    keras.utils.set_random_seed(parameters.load().seed)
    for one, other in zip(model.get_weights(), encoder(SIDE // 2, 1, [4, 4]).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(pd.read_csv(paths.PRETRAINING_CURVES).columns) == [
        "epoch",
        "loss",
        "invariance",
        "covariance",
        "spread",
    ]


def run(module: Any, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    module.main()


def test_the_model_starts_from_the_encoder_and_a_probe_keeps_it(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.main()
    stored = {layer.name: layer.get_weights() for layer in load(paths.ENCODER)[0].layers}
    for probe, kept in ((True, True), (False, False)):
        set_parameters(Path("params.yaml"), {"selfsupervised.probe": probe, "selfsupervised.epochs": 1})
        run(train, "selfsupervised", monkeypatch=monkeypatch)
        model, labels = load(paths.model_file("selfsupervised"))
        assert labels == ["dark", "light"]
        same = all(
            np.array_equal(one, other)
            for layer in model.layers
            for one, other in zip(layer.get_weights(), stored.get(layer.name, []), strict=False)
        )
        assert same == kept
        if not probe:  # near where it started: one epoch with a small step
            np.testing.assert_allclose(model.get_layer("conv1").get_weights()[0], stored["conv1"][0], atol=0.05)
        run(infer, "selfsupervised", monkeypatch=monkeypatch)
        predictions = pd.read_csv(paths.predictions("selfsupervised"))
        assert len(predictions) == 10
        if probe:  # dark and light differ in the average of any convolution
            assert (predictions["prediction"] == predictions["label"]).all()


def test_a_probe_that_did_not_reach_its_optimum_says_so(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.main()
    set_parameters(Path("params.yaml"), {"selfsupervised.probe": True})
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    run(train, "selfsupervised", monkeypatch=monkeypatch)
    assert "train-selfsupervised: warning: not at the optimum after 1 iterations\n" in capsys.readouterr().out


def test_an_encoder_of_other_images_is_one_line(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain.main()
    for folder in (paths.RESIZED, paths.UNLABELLED):
        names, pixels = chunks.read(folder / "00000.h5", "pixels")
        chunks.write(folder / "00000.h5", names, {"pixels": pixels[:, :48, :48]})
    with pytest.raises(
        UserError, match=r"encoder.keras is a model from .*; expected an encoder of images of \(48, 48, 3\)"
    ):
        run(train, "selfsupervised", monkeypatch=monkeypatch)


def test_in_cross_validation_each_fold_has_an_encoder_that_has_not_seen_it(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = pd.read_csv(paths.SPLIT, keep_default_na=False, dtype=str)
    split.loc[split["image"].isin(["6.jpg", "47.jpg"]), "video"] = "1"
    split.to_csv(paths.SPLIT, index=False)
    seen, tables = [], []
    predict = cross_validate.train_and_predict

    def keep(train: Any, table: pd.DataFrame, *arguments: Any) -> np.ndarray:
        tables.append(table)
        return predict(train, table, *arguments)

    monkeypatch.setattr(cross_validate, "train_and_predict", keep)

    def record(rows: Rows, images: list[str], *arguments: Any) -> Any:
        seen.append(set(images))
        return pretrainer.pretrain(rows, images, *arguments)

    monkeypatch.setattr("stages.common.recipes.selfsupervised.pretrain", record)
    set_parameters(Path("params.yaml"), {"cross_validation.folds": 2, "pretrain.epochs": 1, "selfsupervised.epochs": 1})
    run(pretrain, monkeypatch=monkeypatch)
    run(train, "selfsupervised", monkeypatch=monkeypatch)
    cross_validate.main()
    found = pd.read_csv(paths.out_of_fold("selfsupervised"))
    assert len(found) == 40
    assert len(seen) == 2
    unlabelled = {f"{number}.jpg" for number in range(40, 48)}
    validating = [set(table.loc[table["part"].isin(["validation", "test"]), "image"]) for table in tables]
    for fold, images in enumerate(seen, start=1):
        assert set(found.loc[found["fold"] == fold, "image"]) < validating[fold - 1]
        assert not images & validating[fold - 1]
        assert unlabelled - {"47.jpg"} < images
        assert "47.jpg" not in images  # of the video of a test image


def test_unlabelled_and_extra_images_are_resized_apart(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = workspace / "photos"
    for name in ("dog/1.png", "unlabelled/2.png", "unlabelled/3.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(halves(20)).save(photos / name)
    (workspace / "extra/below").mkdir()
    Image.fromarray(halves(30)).save(workspace / "extra/below/4.jpg")
    (workspace / "extra/notes.txt").touch()
    paths.UNLABELLED_LIST.parent.mkdir()
    paths.UNLABELLED_LIST.write_text("unlabelled/2.png\nunlabelled/3.png\n")
    set_parameters(Path("params.yaml"), {"data": "photos"})
    run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)
    assert list(Rows(paths.UNLABELLED, "pixels").places) == [
        "unlabelled/2.png",
        "unlabelled/3.png",
        "extra//below/4.jpg",
    ]
    assert json.loads(paths.UNLABELLED_METRICS.read_text())["images"] == 3
    assert not paths.RESIZED.exists()
    paths.UNLABELLED_LIST.write_text("")
    paths.EXTRA.mkdir()
    set_parameters(Path("params.yaml"), {"pretrain.extra": str(paths.EXTRA)})
    run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)
    assert list(Rows(paths.UNLABELLED, "pixels").places) == []


def test_a_link_or_a_name_that_is_no_text_in_the_further_folder_is_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "photos").mkdir()
    set_parameters(Path("params.yaml"), {"data": "photos"})
    paths.UNLABELLED_LIST.parent.mkdir()
    paths.UNLABELLED_LIST.touch()
    (workspace / "extra/linked").symlink_to(workspace / "photos")
    with pytest.raises(
        UserError, match=r"pretrain.extra is 'extra': extra/linked is a link to a folder, .* a real folder"
    ):
        run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)
    (workspace / "extra/linked").unlink()
    # Thumbnails of a system, which are not looked at.
    (workspace / "extra/.cache").mkdir()
    (workspace / "extra/.cache/linked").symlink_to(workspace / "photos")
    (workspace / "extra/1.heic").touch()
    with pytest.raises(
        UserError, match=r"pretrain.extra is 'extra', which has no image \(1 .heic\); expected .*, .jpg, "
    ):
        run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)
    Path(os.fsdecode(b"extra/caf\xe9.png")).touch()
    with pytest.raises(UserError, match=r"pretrain.extra is 'extra': extra: the name .* is not UTF-8: rename it"):
        run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)


def test_one_label_alone_is_not_trained_on(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = pd.read_csv(paths.SPLIT, keep_default_na=False, dtype=str)
    split.loc[(split["part"] == "train") & (split["label"] == "dark"), "part"] = "unlabelled"
    split.to_csv(paths.SPLIT, index=False)
    pretrain.main()
    with pytest.raises(
        UserError, match=r"data/split.csv has train images of 'light' alone .*; expected two labels or more"
    ):
        run(train, "selfsupervised", monkeypatch=monkeypatch)


def test_folds_refuse_a_budget_of_labels(ready: Path) -> None:
    set_parameters(Path("params.yaml"), {"split.labels_per_class": 3})
    with pytest.raises(UserError, match=r"split.labels_per_class is 3; cross-validate expects all: its folds"):
        cross_validate.main()


def test_folders_of_other_sizes_are_not_mixed(ready: Path) -> None:
    names, pixels = chunks.read(paths.UNLABELLED / "00000.h5", "pixels")
    chunks.write(paths.UNLABELLED / "00000.h5", names, {"pixels": pixels[:, :48, :48]})
    with pytest.raises(UserError, match=r"00000.h5: pixels of \(48, 48, 3\), others have \(72, 72, 3\)"):
        pretrain.main()


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("absent", "is not a folder"),
        ("photos", "contains data, or is in it"),
        (".", "contains data"),
        ("photos/a", "contains data"),
    ],
)
def test_a_further_folder_must_be_apart_from_the_data(workspace: Path, extra: str, reason: str) -> None:
    (workspace / "photos/a").mkdir(parents=True)
    model = {"model": "selfsupervised" if extra == "absent" else "backbone"}
    set_parameters(Path("params.yaml"), {"data": "photos", "pretrain.extra": extra, **model})
    with pytest.raises(
        UserError, match=rf"pretrain.extra is '{extra}', which {reason}.*; expected a folder of further"
    ):
        parameters.load()


def test_an_absent_further_folder_does_not_stop_other_models(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "photos").mkdir()
    set_parameters(Path("params.yaml"), {"data": "photos", "pretrain.extra": "unplugged", "model": "backbone"})
    assert parameters.load().pretrain.extra == "unplugged"
    paths.UNLABELLED_LIST.parent.mkdir()
    paths.UNLABELLED_LIST.touch()
    with pytest.raises(UserError, match=r"pretrain.extra is 'unplugged': unplugged: No such file or directory"):
        run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)


def test_bad_files_of_the_further_folder_are_named_and_do_not_count(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "photos").mkdir()
    Image.fromarray(halves(20)).save(workspace / "photos/1.png")
    Image.fromarray(halves(20)).save(workspace / "extra/good.png")
    (workspace / "extra/bad.jpg").write_bytes(b"no image")
    set_parameters(Path("params.yaml"), {"data": "photos", "resize.max_bad": 0.0})
    paths.UNLABELLED_LIST.parent.mkdir()
    paths.UNLABELLED_LIST.write_text("1.png\n")
    run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)
    assert list(Rows(paths.UNLABELLED, "pixels").places) == ["1.png", "extra//good.png"]
    assert "chunked-resize-unlabelled: warning: skipped extra/bad.jpg: " in capsys.readouterr().out
    (workspace / "photos/1.png").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"1 of 1 images can't be decoded \(1.png: .*; extra/bad.jpg: .*resize.max_bad = 0"
    ):
        run(chunked_resize, "unlabelled", monkeypatch=monkeypatch)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    code = f"""if True:
        import resource, sys
        from pathlib import Path
        import numpy as np
        from stages.common.dataset import chunks
        from stages.common.pretraining.views import Strength, Views
        folder, images = Path({str(tmp_path)!r}), int(sys.argv[1])
        pixels = np.zeros((100, 224, 224, 3), np.uint8)
        names = []
        for number in range(images // 100):
            names += (part := [f"{{number}}-{{row}}" for row in range(100)])
            chunks.write(folder / f"{{images}}/{{number:05d}}.h5", part, {{"pixels": pixels}})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        views = Views(chunks.Rows(folder / str(images), "pixels"), names, 112, 64, Strength(0.25, 0.4), 1)
        for batch in views.epoch(0):
            pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    grown = []
    for images in (400, 4000):
        result = subprocess.run(
            [sys.executable, "-c", code, str(images)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert result.returncode == 0, result.stderr
        grown.append(int(result.stdout))
    assert grown[1] - grown[0] < 20_000  # KiB; their pixels have 540 MB more


@pytest.mark.slow
def test_a_large_step_has_the_same_bytes_each_time() -> None:
    """In a process of its own: how many operations TensorFlow runs at once is settled when it starts."""
    code = """if True:
        import zlib
        import numpy as np
        from stages.common.networks.scratch import encoder
        from stages.common.pretraining.pretrainer import with_expander
        from stages.common.pretraining.vicreg import VICReg
        from stages.common.runtime.backend import keras
        keras.utils.set_random_seed(1)
        model = with_expander(encoder(112, 1, [16, 32, 64, 128]), 112)
        model.compile(keras.optimizers.SGD(1.0), VICReg())
        generator = np.random.default_rng(1)
        pixels = generator.integers(0, 256, (256, 112, 112, 3), dtype=np.uint8)
        colours = np.concatenate([np.tile(np.eye(3), (256, 1, 1)), generator.random((256, 3, 1))], 2).astype(np.float32)
        weights, seen = model.get_weights(), set()
        for _ in range(8):
            model.set_weights(weights)
            model.train_on_batch([pixels, colours], np.zeros((256, 1), np.float32))
            seen.add(zlib.crc32(b"".join(each.tobytes() for each in model.get_weights())))
        print(len(seen))
    """
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout == "1\n", ended.stderr
