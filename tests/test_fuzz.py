"""Damaged and random input: whatever the bytes are, the answer is a result or one error that names the file."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import stages.common.annotations.matlab as matlab_file
from stages.common.images import layout
from stages.common.images.decoding import DecodeError, decode
from stages.common.runtime import parameters
from stages.common.runtime.errors import UserError
from tests.conftest import ROOT
from tests.test_matlab import act, cells, image, struct

COMMITTED = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
# The same examples each time: a test that fails now and then helps nobody.
fuzz = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

Edit = tuple[float, bytes]
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=6)
cuts = st.one_of(st.none(), st.floats(0, 1))


def damaged(content: bytes, changes: list[Edit], cut: float | None) -> bytes:
    """`content` with some bytes overwritten, at places given as fractions of its length, and cut off at a fraction."""
    result = bytearray(content)
    for place, replacement in changes:
        start = int(place * len(result))
        result[start : start + len(replacement)] = replacement
    return bytes(result[: None if cut is None else int(cut * len(result))])


def pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {"exif": exif}),
        (picture, "JPEG", {"progressive": True}),
        (picture, "PNG", {}),
    ]
    variants += [(picture.convert("P"), kind, {}) for kind in ("PNG", "GIF", "BMP")]
    variants += [(picture, "PPM", {}), (picture, "WEBP", {}), (picture, "WEBP", {"lossless": True})]
    variants += [(picture, "TIFF", {"compression": kind}) for kind in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    variants += [(picture.convert("CMYK"), "JPEG", {}), (picture.convert("RGBA"), "PNG", {})]
    contents = []
    for variant, kind, options in variants:
        content = io.BytesIO()
        variant.save(content, kind, **options)
        contents.append(content.getvalue())
    return contents


@settings(fuzz, max_examples=600)
@given(content=st.sampled_from(pictures()), changes=edits, cut=cuts)
def test_any_bytes_are_an_image_or_a_bad_image(tmp_path: Path, content: bytes, changes: list[Edit], cut: float) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(damaged(content, changes, cut))
    try:
        pixels = decode(path, 16)
    except DecodeError:
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


@pytest.fixture(scope="module")
def annotation_files(drawn: Path) -> list[bytes]:
    """The drawn sample's annotation file as it is, and uncompressed, where damage hits its structure."""
    compressed = layout.annotation_file(drawn).read_bytes()
    plain = io.BytesIO()
    rows = [image("1.jpg", vididx=2.0), image("2.jpg", vididx=np.nan)]
    release = struct(annolist=cells(*rows), act=cells(act("sports", "ski", 1.0), act("", "", -1.0)).T)
    scipy.io.savemat(plain, {"RELEASE": release}, oned_as="row")
    return [compressed, plain.getvalue(), plain.getvalue()]


@pytest.mark.slow
@settings(fuzz, max_examples=60)
@given(which=st.integers(0, 2), changes=edits, cut=cuts)
def test_any_bytes_are_annotations_or_one_error(
    tmp_path: Path, annotation_files: list[bytes], which: int, changes: list[Edit], cut: float
) -> None:
    content = annotation_files[which]
    # Without the right version in the header the reader stops: keep the header whole.
    path = tmp_path / "annotations.mat"
    path.write_bytes(content[:128] + damaged(content[128:], changes, cut))
    read(path)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
matlab = st.one_of(
    st.floats(),
    st.text(max_size=6),
    st.just(np.zeros((0, 0))),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.dictionaries(st.sampled_from(["name", "x"]), st.floats(), min_size=1, max_size=2),
)


@pytest.mark.slow
@settings(fuzz, max_examples=60)
@given(name=matlab, video=matlab, category=matlab, activity=matlab, number=matlab, people=matlab)
def test_any_values_are_annotations_or_one_error(
    tmp_path: Path, name: Any, video: Any, category: Any, activity: Any, number: Any, people: Any
) -> None:
    release = struct(
        annolist=cells(image(name, people, vididx=video)), act=cells(act(category, activity, number)), version="12"
    )
    path = tmp_path / "annotations.mat"
    try:
        scipy.io.savemat(path, {"RELEASE": release}, oned_as="row")
    except (UnicodeError, ValueError):
        return
    read(path)


def read(path: Path) -> None:
    try:
        table = matlab_file.read(path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert all(layout.is_inside(name) for name in table["image"])
    assert list(table.columns) == list(layout.COLUMNS)
    assert len(pd.read_csv(io.StringIO(table.to_csv(index=False)))) == len(table)


def check_parameters(path: Path) -> None:
    try:
        loaded = parameters.load(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return
    assert loaded.model in parameters.MODELS


@settings(fuzz, max_examples=200)
@given(value=values, place=st.integers(0, 99))
def test_any_value_is_accepted_or_one_error(tmp_path: Path, value: Any, place: int) -> None:
    changed = copy.deepcopy(COMMITTED)
    sections = [changed, *(section for section in changed.values() if isinstance(section, dict))]
    section = sections[place % len(sections)]
    section[list(section)[place // len(sections) % len(section)]] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    check_parameters(path)


@settings(fuzz, max_examples=300)
@given(
    content=st.one_of(st.binary(max_size=60), st.text("&*!|>%@`{}[]:,-?#'\" \n\tax1.e~<", max_size=40)),
    cut=cuts,
    changes=edits,
)
def test_any_text_is_parameters_or_one_error(
    tmp_path: Path, content: bytes | str, cut: float | None, changes: list[Edit]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_parameters(path)
    path.write_bytes(damaged((ROOT / "params.yaml").read_bytes(), changes, cut))
    check_parameters(path)
