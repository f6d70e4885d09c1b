"""Image files of many kinds: upright, 8-bit RGB, the right pixels, within memory; or a reason."""

import errno
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cykooz_resizer import CpuExtensions, Resizer
from PIL import Image, ImageOps

from stages.common.images import decoding
from stages.common.images.decoding import DecodeError, decode
from tests.conftest import ROOT

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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_dimensions_are_those_of_the_upright_image(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / f"a.{suffix}", exif=exif)
    assert decoding.dimensions(tmp_path / f"a.{suffix}") == ((80, 60) if orientation == 1 else (60, 80))


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
    for name in ("a.png", "a.jpg", "a.webp"):
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


@pytest.mark.parametrize(("value", "grey"), [(256, 1), (30000, 117), (65535, 255)])
def test_32_bit_pixels_of_a_16_bit_range_are_scaled(tmp_path: Path, value: int, grey: int) -> None:
    Image.fromarray(np.full((50, 50), value, np.int32)).save(tmp_path / "a.tif")
    assert (decode(tmp_path / "a.tif", 32) == grey).all()


@pytest.mark.parametrize("value", [0, 200, 65536, 2**31 - 1, -1])
def test_32_bit_pixels_of_an_unknown_range_are_refused(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.full((50, 50), value, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DecodeError, match="32-bit pixels, whose range is unknown"):
        decode(tmp_path / "a.tif", 32)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_camera_of_108_megapixels_is_decoded_in_little_memory(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (12000, 9000), "red").save(tmp_path / "large.jpg", exif=exif)
    limit = 700 << 20  # of address space, libraries included; 324 MB more would be the decoded image
    code = (
        "import resource, sys; from pathlib import Path; from stages.common.images.decoding import decode\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "print(*decode(Path(sys.argv[1]), 224).mean(axis=(0, 1)).round())"
    )
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.jpg")],
        cwd=ROOT,
        env={"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.split() == ["254.0", "0.0", "0.0"]


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DecodeError, match=r"10000x9000 pixels; expected at most 89,478,485"):
        decode(tmp_path / "bomb.png", 32)
    Image.new("L", (18_000, 17_000)).save(tmp_path / "bomb.jpg")
    with pytest.raises(DecodeError, match=r"18000x17000 pixels; expected at most 300,000,000"):
        decode(tmp_path / "bomb.jpg", 32)


def test_the_transparent_colour_of_an_rgb_png_is_not_seen(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 32, 64))
    image.save(tmp_path / "a.png", transparency=(255, 0, 0))
    pixels = decode(tmp_path / "a.png", 64)
    assert (pixels[:, -16:] == 255).all()
    assert (pixels[:, :16] == (0, 0, 255)).all()
