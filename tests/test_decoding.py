"""Image files of many kinds: upright, 8-bit RGB, within memory; or a reason."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common.images.decoding import DecodeError, decode
from tests.conftest import ROOT

# What a camera does to the picture that it stores with an EXIF orientation.
TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def patches() -> Image.Image:
    """Coloured squares, no two alike, 320x240."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3))
    return Image.fromarray(np.kron(colours, np.ones((80, 80, 1))).astype(np.uint8))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_of_every_format_is_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    turn, exif = TURNED[orientation], Image.Exif()
    exif[0x0112] = orientation
    stored = patches() if turn is None else patches().transpose(turn)
    stored.save(tmp_path / "turned", kind, exif=exif, quality=100)
    patches().save(tmp_path / "upright", kind, quality=100)
    pixels, expected = (decode(tmp_path / name, 64).astype(int) for name in ("turned", "upright"))
    assert np.abs(pixels - expected).mean() < 1.5
    assert np.abs(pixels - expected[::-1, ::-1]).mean() > 20


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (30000, 117), (65535, 255)])
def test_32_bit_pixels_of_a_16_bit_range_are_scaled(tmp_path: Path, value: int, grey: int) -> None:
    Image.fromarray(np.full((50, 50), value, np.int32)).save(tmp_path / "a.tif")
    assert (decode(tmp_path / "a.tif", 32) == grey).all()


@pytest.mark.parametrize("value", [65536, 2**31 - 1, -1])
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
