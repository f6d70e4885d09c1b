"""Decoding and resizing: right pixels, bad images as counted values, the same bytes for any number of workers."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from cykooz_resizer import CpuExtensions, Resizer
from PIL import Image, ImageOps

from stages import chunked_resize, split
from stages.common.dataset import chunks
from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import read_split
from stages.common.images import decoding
from stages.common.images.decoding import DecodeError, decode
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv
from tests.conftest import ROOT, set_parameters

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(
    (80, 60), Image.Resampling.BICUBIC
)


def square(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(decoding._to_square(image, box, size))


def reference(image: Image.Image, size: int = 48) -> np.ndarray:
    return square(image.convert("RGB"), (0, 0, *image.size), size)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_modes_without_loss(tmp_path: Path, mode: str) -> None:
    image = PICTURE.convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 48), reference(image))


def test_sixteen_bit_grey_is_not_white(tmp_path: Path) -> None:
    grey = np.asarray(PICTURE.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 48), reference(Image.fromarray(grey)))


def test_the_colour_of_transparent_pixels_is_not_seen(tmp_path: Path) -> None:
    image = PICTURE.convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 48) == 255).all()


def test_the_transparent_grey_of_sixteen_bits_is_not_seen(tmp_path: Path) -> None:
    Image.new("I;16", (9, 9), 0x4000).save(tmp_path / "a.png", transparency=0x4000)
    assert (decode(tmp_path / "a.png", 48) == 255).all()


def test_cmyk_and_a_png_named_jpg(tmp_path: Path) -> None:
    PICTURE.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decode(tmp_path / "a.jpg", 48).astype(int) - reference(PICTURE)).mean() < 3
    PICTURE.save(tmp_path / "b.jpg", format="PNG")
    np.testing.assert_array_equal(decode(tmp_path / "b.jpg", 48), reference(PICTURE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = PICTURE if operation is None else PICTURE.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.jpg"):
        stored.save(tmp_path / name, exif=exif)
        found = decode(tmp_path / name, 48)
        with Image.open(tmp_path / name) as image:
            resized = Image.fromarray(reference(image))
            upright = reference(ImageOps.exif_transpose(image))
        resized.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(found, ImageOps.exif_transpose(resized))
        # Not the same bits where sides are exchanged: the other direction is resized first.
        assert np.abs(found.astype(int) - upright).max() <= 2
    stored.save(tmp_path / "a.tiff", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "a.tiff", 48), reference(PICTURE))


def test_a_broken_exif_loses_no_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", exif=b"Exif\0\0 not a TIFF header")
    assert decode(tmp_path / "a.jpg", 48).shape == (48, 48, 3)
    # Orientation 6, and a signed number where the standard has an unsigned one.
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHIi", 0x100, 9, 1, -1)
    PICTURE.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    with Image.open(tmp_path / "a.jpg") as image:
        expected = Image.fromarray(reference(image)).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg", 48), expected)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_fault_of_the_system_is_not_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    PICTURE.save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        decode(tmp_path / "a.jpg", 48)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 48) == (10, 200, 30)).all()


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (640, 360, (0, 0, 640, 360)),
        (97, 131, (0, 0, 96.4, 130.75)),
        (400, 48, (0, 0, 400, 48)),
        (20, 30, (0, 0, 20, 30)),
        (2400, 2400, (0, 0, 2400, 2400)),  # more than Pillow keeps in one piece of memory
    ],
)
def test_a_square_is_the_one_that_pillow_makes(width: int, height: int, box: tuple[float, float, float, float]) -> None:
    image = PICTURE.resize((width, height), Image.Resampling.BICUBIC)
    ours = square(image, box, 48)
    assert ours.dtype == np.uint8
    theirs = image.resize((48, 48), Image.Resampling.LANCZOS, box)
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2
    for level in (0, 1, 128, 255):
        assert (square(Image.new("RGB", image.size, (level,) * 3), box, 48) == level).all()


@pytest.mark.parametrize("size", [(960, 540), (480, 640), (1, 1), (3, 700), (225, 223), (4001, 77)])
def test_squares_are_the_same_bits_with_any_vector_instructions(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    box = (0, 0, *noise.size)
    expected = square(noise, box, 224)
    for extensions in CpuExtensions:
        resizer = Resizer()
        resizer.cpu_extensions = extensions  # ignored if the processor does not have them
        monkeypatch.setattr(decoding, "Resizer", lambda resizer=resizer: resizer)
        np.testing.assert_array_equal(square(noise, box, 224), expected)


def test_reduced_jpeg_decoding_is_close_to_full_decoding(shared: Callable[[str], Path]) -> None:
    files = sorted((shared("mpii/actions10") / "images").iterdir())[::12]
    worst = 99.0
    for path in files:
        with Image.open(path) as image:
            whole = image.convert("RGB").resize((224, 224), Image.Resampling.LANCZOS)
        error = decode(path, 224).astype(float) - np.asarray(whole)
        worst = min(worst, 10 * np.log10(255**2 / max(np.mean(error**2), 1e-3)))
    assert worst >= 44


def test_the_limit_of_a_jpeg_is_that_of_the_reduced_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.jpg")
    PICTURE.save(tmp_path / "a.png")
    whole = decode(tmp_path / "a.jpg", 20)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 40 * 30)
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg", 20), whole)
    for name, size in (("a.png", 20), ("a.jpg", 48)):
        with pytest.raises(DecodeError, match="80x60 pixels; expected at most 1,200"):
            decode(tmp_path / name, size)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_photograph_of_a_large_camera_is_decoded(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (10_000, 9_000), 77).save(tmp_path / "a.jpg", exif=exif)
    assert decoding.MAX_PIXELS < 10_000 * 9_000
    assert (decode(tmp_path / "a.jpg", 48) == 77).all()


def bad_files(folder: Path) -> dict[str, str]:
    """Make one bad image of each kind in `folder`: name and the reason expected."""
    PICTURE.save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:500])
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html></html>")
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("1", (12_000, 12_000)).save(folder / "smaller bomb.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(folder / "int.tiff")
    header = bytearray((folder / "whole.jpg").read_bytes())
    sides = header.index(b"\xff\xc0") + 5  # height and width, 16 bits each
    header[sides : sides + 4] = struct.pack(">HH", 20_000, 20_000)
    (folder / "bomb.jpg").write_bytes(header)
    (folder / "whole.jpg").unlink()
    return {
        "truncated.jpg": "Truncated",
        "empty.jpg": "cannot identify",
        "page.jpg": "cannot identify",
        "folder.jpg": "not a file",
        "dangling.jpg": "No such file",
        "bomb.png": "20000x20000 pixels; expected at most 89,478,485",
        "smaller bomb.png": "12000x12000 pixels; expected at most 89,478,485",
        "float.tiff": "floating-point",
        "int.tiff": "32-bit",
        "bomb.jpg": "20000x20000 pixels; expected at most 300,000,000",
    }


def test_bad_images_are_values_with_a_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(DecodeError, match=reason):
            decode(tmp_path / name, 48)


def test_bad_images_are_counted_named_and_skipped(
    workspace: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn, workspace / "photos")
    images = workspace / "photos/images"
    good = sorted(path.name for path in images.iterdir())
    bad = bad_files(images)
    paths.IMAGE_LIST.parent.mkdir()
    paths.IMAGE_LIST.write_text("".join(f"{name}\n" for name in [*good[:80], *bad, *good[80:]]))
    set_parameters(Path("params.yaml"), {"data": "photos", "resize.max_bad": 0.01})
    with pytest.raises(UserError, match=r"10 of 170 images can't be decoded .*resize.max_bad = 0.01"):
        chunked_resize.main()
    assert not paths.RESIZED.exists()
    set_parameters(Path("params.yaml"), {"resize.max_bad": 0.1})
    chunked_resize.main()
    metrics = json.loads(paths.RESIZE_METRICS.read_text())
    assert (metrics["images"], metrics["bad"]) == (160, 10)
    assert list(metrics["bad_images"]) == list(bad)
    printed = capsys.readouterr().out
    rows = Rows(paths.RESIZED, "pixels")
    for name, reason in bad.items():
        assert reason in metrics["bad_images"][name]
        assert name in printed
        assert name not in rows
    for name in (good[0], good[-1]):
        np.testing.assert_array_equal(rows.read([name])[0], decode(images / name, 72))


def test_an_empty_list_of_images_is_one_error(workspace: Path) -> None:
    paths.IMAGE_LIST.parent.mkdir()
    paths.IMAGE_LIST.touch()
    with pytest.raises(UserError, match=r"data/images.txt lists no image; make it again with dvc repro"):
        chunked_resize.main()


def test_names_of_all_kinds_arrive(workspace: Path, drawn: Path) -> None:
    names = [
        "a  b.jpg",
        "ü ñ 日本.jpg",
        "line\u2028separator.jpg",
        "no\u00a0break.jpg",
        " first.jpg",
        "in/folder.jpg",
        '"q",.jpg',
    ]
    rows = [f"{number}.jpg" for number in range(9)] + names
    table = pd.DataFrame({"image": rows, "category": ["a", "b"] * 8, "activity": "", "video": range(16)})
    table = table.assign(people=1, labelled=True)
    folder = workspace / "photos/images"
    (folder / "in").mkdir(parents=True)
    for name in rows:
        PICTURE.save(folder / name, "JPEG")
    set_parameters(Path("params.yaml"), {"data": "photos"})
    write_csv(paths.ANNOTATIONS, table)
    split.main()
    chunked_resize.main()
    assert list(Rows(paths.RESIZED, "pixels").places) == rows
    assert list(read_split()["image"]) == rows


def test_more_chunks_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    for number in range(80):
        pixels = np.full((1, 2, 2, 3), number, np.uint8)
        chunks.write(tmp_path / f"{number:05d}.h5", [f"{number}.jpg"], {"pixels": pixels})
    code = """if True:
        import resource, sys
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from stages.common.dataset.chunks import Rows
        rows = Rows(Path(sys.argv[1]), "pixels").read([f"{number}.jpg" for number in range(80)] * 2)
        assert rows.max(axis=(1, 2, 3)).tolist() == [*range(80)] * 2
    """
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_a_bad_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(DecodeError, match="Permission denied"):
        decode(tmp_path / "a.jpg", 48)


def test_any_number_of_workers_writes_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    images = drawn / "images"
    names = sorted(path.name for path in images.iterdir())
    for workers in (1, 3):
        (tmp_path / str(workers)).mkdir()
        assert chunked_resize.resize(names, images, 40, 32, tmp_path / str(workers), workers) == {}
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == [f"{number:05d}.h5" for number in range(5)]
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    chunks.write(tmp_path / "0.h5", ["a", "b", "ü c"], {"x": values[:3]})
    chunks.write(tmp_path / "1.h5", ["d", "e", "f"], {"x": values[3:]})
    rows = Rows(tmp_path, "x")
    np.testing.assert_array_equal(rows.read(["f", "a", "ü c", "a"]), values[[5, 0, 2, 0]])
    with pytest.raises(UserError, match="absent contains no chunk files; make them with dvc repro"):
        Rows(tmp_path / "absent", "x")
    with pytest.raises(UserError, match=r"0.h5 contains no pixels; make them with dvc repro"):
        Rows(tmp_path, "pixels")


@pytest.mark.parametrize("left", [0, 100, 700])
def test_a_damaged_chunk_is_one_error_that_names_the_file(tmp_path: Path, left: int) -> None:
    path = tmp_path / "0.h5"
    chunks.write(path, ["a.jpg"], {"x": np.zeros((1, 4), np.uint8)})
    path.write_bytes(path.read_bytes()[:left])
    for read in (lambda: chunks.names(path), lambda: chunks.read(path, "x"), lambda: Rows(tmp_path, "x")):
        with pytest.raises(UserError, match=rf"{path}: damaged \(.*\); remove its folder and run dvc repro"):
            read()


def test_a_chunk_that_shrinks_while_it_is_used_is_one_error_that_names_file_and_image(tmp_path: Path) -> None:
    path = tmp_path / "0.h5"
    chunks.write(path, ["a.jpg", "b.jpg"], {"x": np.zeros((2, 4000), np.uint8)})
    rows = Rows(tmp_path, "x")
    os.truncate(path, rows.places["b.jpg"][1] + 3999)
    assert rows.read(["a.jpg"]).shape == (1, 4000)
    with pytest.raises(UserError, match=rf"{path}: ends within b.jpg; remove its folder and run dvc repro"):
        rows.read(["a.jpg", "b.jpg"])


def test_a_dataset_that_is_compressed_is_refused_not_misread(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file.create_dataset("image", data=["a.jpg"], dtype=h5py.string_dtype())
        file.create_dataset("x", data=np.zeros((1, 4)), compression="gzip")
    with pytest.raises(UserError, match="0.h5: x are not contiguous"):
        Rows(tmp_path, "x")


def test_a_chunk_without_the_dataset_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    chunks.write(tmp_path / "0.h5", ["a.jpg"], {"x": np.zeros((1, 4), np.uint8)})
    with pytest.raises(UserError, match=rf"{tmp_path / '0.h5'}: damaged .*pixels"):
        chunks.read(tmp_path / "0.h5", "pixels")


def test_resuming_keeps_whole_chunks_and_makes_damaged_ones_again(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = drawn / "images"
    names = sorted(path.name for path in images.iterdir())[:48]
    (tmp_path / "chunks").mkdir()
    assert chunked_resize.resize(names, images, 40, 16, tmp_path / "chunks", 1) == {}
    assert "resuming" not in capsys.readouterr().out
    (tmp_path / "chunks/00001.h5").write_bytes(b"damaged")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chunks").iterdir()}
    del before["00001.h5"]
    assert chunked_resize.resize(names, images, 40, 16, tmp_path / "chunks", 1) == {}
    shown = capsys.readouterr().out
    assert "chunked-resize: discarded the damaged 00001.h5" in shown
    assert "chunked-resize: resuming: 2/3 chunks done" in shown
    assert Rows(tmp_path / "chunks", "pixels").read(names).any(axis=(1, 2, 3)).all()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chunks").iterdir()}
    assert sorted(after) == ["00000.h5", "00001.h5", "00002.h5"]
    assert {name: after[name] for name in before} == before
