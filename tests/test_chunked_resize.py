"""Decoding and resizing: right pixels, bad images as counted values, the same bytes for any number of workers."""

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cykooz_resizer import CpuExtensions, Resizer
from PIL import Image, ImageOps

from stages import chunked_resize, split
from stages.common import chunks, decoding
from stages.common.chunks import Rows
from stages.common.decoding import BadImage, decode
from stages.common.files import write_csv
from stages.common.parts import read_split
from stages.common.problem import Problem
from tests.conftest import ROOT, set_parameters

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(
    (80, 60), Image.Resampling.BICUBIC
)


def reference(image: Image.Image, size: int = 48) -> np.ndarray:
    return decoding._squared(image.convert("RGB"), (0, 0, *image.size), size)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_modes_without_loss(tmp_path: Path, mode: str) -> None:
    image = PICTURE.convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 48), reference(image))


def test_sixteen_bit_grey_is_not_white(tmp_path: Path) -> None:
    grey = np.asarray(PICTURE.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 48), reference(Image.fromarray(grey)))


def test_what_is_under_transparency_is_not_seen(tmp_path: Path) -> None:
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
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 48), reference(PICTURE))
    stored.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(decode(tmp_path / "a.jpg", 48), reference(ImageOps.exif_transpose(image)))


def test_a_broken_exif_loses_no_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", exif=b"Exif\0\0 not a TIFF header")
    assert decode(tmp_path / "a.jpg", 48).shape == (48, 48, 3)
    # Orientation 6, and a signed number where the standard has an unsigned one.
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHIi", 0x100, 9, 1, -1)
    PICTURE.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    with Image.open(tmp_path / "a.jpg") as image:
        expected = reference(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg", 48), expected)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_the_systems_faults_are_not_the_images(
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
        (2400, 2400, (0, 0, 2400, 2400)),  # more than Pillow holds in one piece of memory
    ],
)
def test_a_square_is_the_one_by_pillow(width: int, height: int, box: tuple[float, float, float, float]) -> None:
    image = PICTURE.resize((width, height), Image.Resampling.BICUBIC)
    ours = decoding._squared(image, box, 48)
    assert ours.dtype == np.uint8
    theirs = image.resize((48, 48), Image.Resampling.LANCZOS, box)
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2
    for level in (0, 1, 128, 255):
        assert (decoding._squared(Image.new("RGB", image.size, (level,) * 3), box, 48) == level).all()


@pytest.mark.parametrize("size", [(960, 540), (480, 640), (1, 1), (3, 700), (225, 223), (4001, 77)])
def test_squares_are_the_same_bits_with_any_vector_instructions(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    box = (0, 0, *noise.size)
    expected = decoding._squared(noise, box, 224)
    for extensions in CpuExtensions:
        resizer = Resizer()
        resizer.cpu_extensions = extensions  # heeded where the processor has them
        monkeypatch.setattr(decoding, "Resizer", lambda resizer=resizer: resizer)
        np.testing.assert_array_equal(decoding._squared(noise, box, 224), expected)


def test_reduced_jpeg_decoding_is_close_to_the_whole(shared: Callable[[str], Path]) -> None:
    paths = sorted((shared("mpii/actions10") / "images").iterdir())[::12]
    worst = 99.0
    for path in paths:
        with Image.open(path) as image:
            whole = image.convert("RGB").resize((224, 224), Image.Resampling.LANCZOS)
        error = decode(path, 224).astype(float) - np.asarray(whole)
        worst = min(worst, 10 * np.log10(255**2 / max(np.mean(error**2), 1e-3)))
    assert worst >= 44


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
    (folder / "whole.jpg").unlink()
    return {
        "truncated.jpg": "Truncated",
        "empty.jpg": "cannot identify",
        "page.jpg": "cannot identify",
        "folder.jpg": "not a file",
        "dangling.jpg": "No such file",
        "bomb.png": "Decompression",
        "smaller bomb.png": "Decompression",
        "float.tiff": "floating-point",
    }


def test_bad_images_are_values_with_a_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(BadImage, match=reason):
            decode(tmp_path / name, 48)


def test_bad_images_are_counted_named_and_left_out(
    workspace: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(drawn, workspace / "photos")
    images = workspace / "photos/images"
    good = sorted(path.name for path in images.iterdir())
    bad = bad_files(images)
    chunked_resize.IMAGES.parent.mkdir()
    chunked_resize.IMAGES.write_text("".join(f"{name}\n" for name in [*good[:80], *bad, *good[80:]]))
    set_parameters(Path("params.yaml"), {"data": "photos", "resize.max_bad": 0.01})
    with pytest.raises(Problem, match=r"8 of 168 images can't be decoded .*resize.max_bad = 0.01"):
        chunked_resize.main()
    assert not chunked_resize.OUT.exists()
    set_parameters(Path("params.yaml"), {"resize.max_bad": 0.1})
    chunked_resize.main()
    metrics = json.loads(chunked_resize.METRICS.read_text())
    assert (metrics["images"], metrics["bad"]) == (160, 8)
    assert list(metrics["bad_images"]) == list(bad)
    printed = capsys.readouterr().out
    rows = Rows(chunked_resize.OUT, "pixels")
    for name, reason in bad.items():
        assert reason in metrics["bad_images"][name]
        assert name in printed
        assert name not in rows
    for name in (good[0], good[-1]):
        np.testing.assert_array_equal(rows.read([name])[0], decode(images / name, 72))


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
    write_csv(split.ANNOTATIONS, table)
    split.main()
    chunked_resize.main()
    assert list(Rows(chunked_resize.OUT, "pixels").places) == rows
    assert list(read_split()["image"]) == rows


def test_more_chunks_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    for number in range(80):
        pixels = np.full((1, 2, 2, 3), number, np.uint8)
        chunks.write(tmp_path / f"{number:05d}.h5", [f"{number}.jpg"], {"pixels": pixels})
    code = """if True:
        import resource, sys
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from stages.common.chunks import Rows
        rows = Rows(Path(sys.argv[1]), "pixels").read([f"{number}.jpg" for number in range(80)] * 2)
        assert rows.max(axis=(1, 2, 3)).tolist() == [*range(80)] * 2
    """
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_a_bad_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(BadImage, match="Permission denied"):
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
    with pytest.raises(Problem, match="no chunk files"):
        Rows(tmp_path / "absent", "x")
