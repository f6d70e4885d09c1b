"""Labelling images with a trained model, as a user would."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from commands import predict
from stages.common.images.decoding import DecodeError, decode
from stages.common.networks.scratch import scratch
from stages.common.networks.serialization import load, save
from stages.common.prediction import classifier
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.train import with_probabilities
from tests.conftest import ROOT

LABELS = ["a", "b, c", "d", "e", "f", "g"]


@pytest.fixture
def photos(workspace: Path) -> Path:
    """A trained model, and a folder with two good images, a bad one and a text file."""
    keras.utils.set_random_seed(1)
    logits = scratch(72, 2, [4], 0.0, len(LABELS))
    save(keras.Model(logits.input, keras.layers.Softmax()(logits.output)), paths.model_file("scratch"), LABELS)
    folder = workspace / "photos"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (90, 60), "red").save(folder / "ü 1.jpg")
    Image.new("L", (90, 60), 40).save(folder / "below" / "2.PNG")
    (folder / "3.jpg").write_text("<html>")
    (folder / "readme.txt").write_text("no image")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m commands.predict", *arguments])
    predict.main()


def test_a_folder_with_a_bad_image(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "photos", "--csv", "out.csv")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2
    assert all(len(line.rsplit(": ", 1)[1].split("; ")) == 5 for line in lines)
    assert "photos/3.jpg: skipped: cannot identify" in captured.err
    assert "2 images labelled, 1 skipped" in captured.err
    table = pd.read_csv("out.csv")
    assert list(table.columns) == ["image", "prediction", "probability", *LABELS]
    assert sorted(table["image"]) == ["photos/below/2.PNG", "photos/ü 1.jpg"]
    np.testing.assert_allclose(table[LABELS].sum(axis=1), 1, atol=1e-5)
    assert (table[LABELS].idxmax(axis=1) == table["prediction"]).all()
    np.testing.assert_array_equal(table[LABELS].max(axis=1), table["probability"])


def test_the_probabilities_are_the_models(photos: Path) -> None:
    model, _ = load(paths.model_file("scratch"))
    ((_, probabilities),) = classifier.label_images(model, [photos / "ü 1.jpg"])
    expected = model.predict_on_batch(decode(photos / "ü 1.jpg", 72)[None])[0]
    assert isinstance(probabilities, np.ndarray)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_pictures_with_heat_maps_are_written_in_order(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "wide.jpg")
    logits = scratch(72, 2, [4], 0.0, len(LABELS))
    save(with_probabilities(logits, "scratch"), paths.model_file("scratch"), LABELS)
    run(monkeypatch, "photos", "--explain", "maps/of these")
    assert "3 pictures in maps/of these: yellow is where the evidence" in capsys.readouterr().err
    found = {path.name: np.asarray(Image.open(path)) for path in sorted(Path("maps/of these").iterdir())}
    assert [name.split("-")[0] for name in found] == ["00001", "00002", "00003"]
    assert {name.split("-")[1]: picture.shape for name, picture in found.items()} == {
        "2.png": (60, 90, 3),
        "wide.png": (320, 640, 3),
        "ü 1.png": (60, 90, 3),
    }
    assert np.ptp(found["00002-wide.png"].mean(axis=2)) > 50
    Path("file").touch()
    with pytest.raises(UserError, match="file"):
        run(monkeypatch, "photos", "--explain", "file")


def test_a_model_by_name_and_by_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("scratch", "models/scratch/model.keras"):
        run(monkeypatch, "photos/ü 1.jpg", "--model", model)
    save(scratch(72, 2, [4], 0.0, 3), Path("backbone.keras"), [])
    with pytest.raises(
        UserError, match="backbone.keras: 0 labels for an output of .*; expected a model that a train stage wrote"
    ):
        run(monkeypatch, "photos", "--model", "backbone.keras")
    with pytest.raises(UserError, match="models/vgg16/model.keras: no such model; make it with dvc repro"):
        run(monkeypatch, "photos", "--model", "vgg16")


def test_nothing_to_label_is_one_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match="photos/empty: no image found; expected files ending in .bmp"):
        run(monkeypatch, "photos/empty")
    with pytest.raises(UserError, match="none of the images could be decoded"):
        run(monkeypatch, "photos/3.jpg", "--csv", "out.csv")
    assert not Path("out.csv").exists()
    with pytest.raises(UserError, match=r"photos/absent.jpg: no such file or folder"):
        run(monkeypatch, "photos/absent.jpg")


def test_images_are_found_in_folders_and_files_are_taken_as_they_are(photos: Path) -> None:
    inside = [photos / "3.jpg", photos / "below/2.PNG", photos / "ü 1.jpg"]
    assert predict.find_images([photos]) == inside
    named = [photos / "readme.txt", photos / "ü 1.jpg"]
    assert predict.find_images([*named, photos]) == [*named, *inside[:2]]


def test_images_keep_their_order_over_several_batches_with_bad_ones(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "BATCH", 2)
    model, _ = load(paths.model_file("scratch"))
    good, other, bad = photos / "ü 1.jpg", photos / "below/2.PNG", photos / "3.jpg"
    images = [bad, good, bad, bad, other, good, bad]
    found = list(classifier.label_images(model, images))
    assert [path for path, _ in found] == images
    for path, result in found:
        assert isinstance(result, DecodeError) == (path == bad)
        if not isinstance(result, DecodeError):
            np.testing.assert_allclose(result, model.predict_on_batch(decode(path, 72)[None])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("photos", "--csv is 'photos', a folder"),
        ("photos/readme.txt/out.csv", "could not write photos/readme.txt/out.csv"),
    ],
)
def test_a_table_that_can_not_be_written_is_noticed_before_the_model_is_loaded(
    photos: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    paths.model_file("scratch").unlink()
    with pytest.raises(UserError, match=message):
        run(monkeypatch, "photos", "--csv", target)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a bug")])
def test_an_error_of_the_model_is_not_one_of_writing_the_table(
    photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> Iterator[tuple[Path, np.ndarray]]:
        yield photos / "ü 1.jpg", np.full(len(LABELS), 1 / len(LABELS))
        raise error

    monkeypatch.setattr(predict, "ROWS", 1)
    monkeypatch.setattr(predict, "label_images", broken)
    with pytest.raises(type(error), match="a bug"):
        run(monkeypatch, "photos", "--csv", "out.csv")
    assert not list(Path().glob("*out.csv*"))


def test_the_table_follows_a_link_and_makes_its_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("link.csv").symlink_to("deep/er/out.csv")
    run(monkeypatch, "photos", "--csv", "link.csv")
    assert Path("link.csv").is_symlink()
    assert not Path("deep/er/out.csv").is_symlink()
    assert len(pd.read_csv("deep/er/out.csv")) == 2
    assert [path.name for path in Path("deep/er").iterdir()] == ["out.csv"]


def test_the_table_can_be_written_to_a_pipe(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("pipe")
    with ThreadPoolExecutor() as pool:
        received = pool.submit(Path("pipe").read_bytes)
        run(monkeypatch, "photos", "--csv", "pipe")
        assert received.result(timeout=60).startswith(b"image,prediction,probability,a,")
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)


def test_odd_names_control_no_terminal_and_keep_their_bytes_in_the_table(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = photos / "odd"
    odd.mkdir()
    names = [b"\xff.jpg", b"\x1b[31m.jpg"]
    for name in names:
        Image.new("RGB", (9, 9)).save(odd / os.fsdecode(name))
    (odd / os.fsdecode(b"\xfe\x07.png")).write_text("<html>")
    run(monkeypatch, "photos/odd", "--csv", "out.csv")
    captured = capsys.readouterr()
    assert sorted(line.split(":")[0] for line in captured.out.splitlines()) == [
        "photos/odd/\ufffd.jpg",
        "photos/odd/\ufffd[31m.jpg",
    ]
    assert "photos/odd/\ufffd\ufffd.png: skipped" in captured.err
    table = Path("out.csv").read_bytes()
    assert all(b"photos/odd/" + name in table for name in names)


@pytest.mark.slow
def test_the_command_is_run_as_a_module(photos: Path) -> None:
    command = [sys.executable, "-m", "commands.predict", "photos"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("photos/below/2.PNG: ")
    assert ended.stderr.splitlines() == [
        "photos/3.jpg: skipped: cannot identify image file",
        "2 images labelled, 1 skipped",
    ]


def test_without_a_path_it_shows_its_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m commands.predict")


def test_the_table_can_be_piped_to_another_program(photos: Path) -> None:
    command = f"{sys.executable} -m commands.predict photos --csv >(cut -d, -f1 > names.txt); sleep 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", command], cwd=photos.parent, env=environment, check=True, capture_output=True)
    assert (photos.parent / "names.txt").read_text().splitlines()[0] == "image"


def test_the_table_does_not_replace_an_image(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (photos / "ü 1.jpg").read_bytes()
    with pytest.raises(UserError, match="--csv is 'photos/ü 1.jpg', one of the images"):
        run(monkeypatch, "photos", "--csv", "photos/ü 1.jpg")
    assert (photos / "ü 1.jpg").read_bytes() == before


def test_a_model_of_maps_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = keras.Input((72, 72, 3), dtype="uint8")
    save(keras.Model(images, keras.layers.Dense(2)(images)), Path("maps.keras"), ["a", "b"])
    with pytest.raises(UserError, match=r"maps.keras: 2 labels for an output of \(72, 72, 2\)"):
        run(monkeypatch, "photos", "--model", "maps.keras")


def test_many_images_are_summarised_and_the_table_has_each(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(predict.LISTED):
        Image.new("RGB", (9, 9), (number * 9, 0, 90)).save(photos / f"more {number}.png")
    monkeypatch.setattr(predict, "ROWS", 7)
    run(monkeypatch, "photos", "--csv", "out.csv")
    captured = capsys.readouterr()
    table = pd.read_csv("out.csv")
    assert len(table) == predict.LISTED + 2
    assert dict(line.rsplit(": ", 1) for line in captured.out.splitlines()) == {
        label: f"{count} image{'s' * (count != 1)}" for label, count in table["prediction"].value_counts().items()
    }
    assert "photos/3.jpg: skipped" in captured.err
    assert "22 images labelled, 1 skipped" in captured.err
    assert "--csv OUT" not in captured.err
    run(monkeypatch, "photos")
    assert "for the label of each image: --csv OUT" in capsys.readouterr().err


def test_a_label_may_be_called_prediction(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = load(paths.model_file("scratch"))
    save(model, Path("odd.keras"), ["prediction", "image", "probability", "d", "e", "f"])
    run(monkeypatch, "photos", "--model", "odd.keras")
    assert "2 images labelled, 1 skipped" in capsys.readouterr().err


def test_top_says_how_many_labels_are_printed(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "photos/\u00fc 1.jpg", "--top", "2")
    assert len(capsys.readouterr().out.split(";")) == 2
    with pytest.raises(SystemExit):
        run(monkeypatch, "photos", "--top", "0")
    assert "--top: '0'; expected a whole number from 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_memory_does_not_grow_with_the_number_of_images(photos: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(photos.parent / "small.png")
    code = """if True:
        import resource, sys
        from commands import predict
        sys.argv = ["predict", sys.argv[1], "--csv", "out.csv"]
        predict.main()
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for images in (500, 6_000):
        folder = photos.parent / f"many {images}"
        folder.mkdir()
        for number in range(images):
            os.link(photos.parent / "small.png", folder / f"{number}.png")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
        )
        peaks.append(int(ended.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 60_000  # KB; the decoded images alone would be 90 MB
