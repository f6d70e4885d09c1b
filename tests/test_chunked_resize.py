"""The stage chunked-resize, and chunk files: bad images as counted values, the same bytes for any number of workers."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import chunked_resize, split
from stages.common.dataset import chunks
from stages.common.dataset.chunks import Rows
from stages.common.dataset.splits import read_split
from stages.common.images.decoding import DecodeError, decode
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv
from tests.conftest import ROOT, set_parameters
from tests.test_decoding import PICTURE


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
    table = table.assign(people=1, labelled=True, part="")
    folder = workspace / "photos"
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
    files = {path.name: path for path in sorted(images.iterdir())}
    for workers in (1, 3):
        (tmp_path / str(workers)).mkdir()
        assert chunked_resize.resize(files, 40, 32, tmp_path / str(workers), workers) == {}
    written = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert written == [f"{number:05d}.h5" for number in range(5)]
    for name in written:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_a_file_that_the_cache_does_not_keep_is_open_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when two threads open it at once: the cache keeps one file, and the other one is closed when nobody holds it."""
    chunks.write(tmp_path / "00000.h5", ["a"], {"pixels": np.full((1, 2, 2, 3), 7, np.uint8)})
    rows = chunks.Rows(tmp_path, "pixels")
    monkeypatch.setattr(chunks, "_open", chunks._open.__wrapped__)
    assert (rows.read(["a"]) == 7).all()


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
    files = {path.name: path for path in sorted(images.iterdir())[:48]}
    (tmp_path / "chunks").mkdir()
    assert chunked_resize.resize(files, 40, 16, tmp_path / "chunks", 1) == {}
    assert "resuming" not in capsys.readouterr().out
    (tmp_path / "chunks/00001.h5").write_bytes(b"damaged")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chunks").iterdir()}
    del before["00001.h5"]
    assert chunked_resize.resize(files, 40, 16, tmp_path / "chunks", 1) == {}
    shown = capsys.readouterr().out
    assert "chunked-resize: discarded the damaged 00001.h5" in shown
    assert "chunked-resize: resuming: 2/3 chunks done" in shown
    assert Rows(tmp_path / "chunks", "pixels").read(list(files)).any(axis=(1, 2, 3)).all()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chunks").iterdir()}
    assert sorted(after) == ["00000.h5", "00001.h5", "00002.h5"]
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("content", ["", "null", "[]", "{"])
def test_a_damaged_list_of_bad_images_is_made_again(drawn: Path, tmp_path: Path, content: str) -> None:
    names = [*sorted(path.name for path in (drawn / "images").iterdir())[:5], "absent.jpg"]
    files = {name: drawn / "images" / name for name in names}
    expected = chunked_resize.resize(files, 40, 3, tmp_path, 1)
    assert list(expected) == ["absent.jpg"]
    (tmp_path / "00001.bad.json").write_text(content)
    assert chunked_resize.resize(files, 40, 3, tmp_path, 1) == expected
