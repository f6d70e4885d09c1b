"""Reading MPII's annotation file, with everything odd in it."""

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io

from stages import annotate
from stages.common.annotations import matlab
from stages.common.images import layout
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_csv
from tests.conftest import ROOT

EMPTY = np.zeros((0, 0))


def struct(**fields: Any) -> dict[str, Any]:
    return fields


def cells(*rows: dict[str, Any]) -> np.ndarray:
    """A MATLAB struct array, (1, n), of rows with the same fields."""
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in rows[0]])
    for number, row in enumerate(rows):
        array[0, number] = tuple(row.values())
    return array


def image(name: Any, people: Any = EMPTY, **fields: Any) -> dict[str, Any]:
    return struct(image=struct(name=name), annorect=people, **fields)


def act(category: Any, activity: Any, number: Any) -> dict[str, Any]:
    return struct(cat_name=category, act_name=activity, act_id=number)


def save(path: Path, images: list[dict[str, Any]], acts: list[dict[str, Any]]) -> Path:
    release = struct(annolist=cells(*images), img_train=np.ones((1, len(images))), act=cells(*acts).T, version="12")
    scipy.io.savemat(path, {"RELEASE": release}, oned_as="row")
    return path


def person(scale: float = 1.0) -> dict[str, Any]:
    return struct(scale=scale, objpos=struct(x=1.0, y=2.0))


def test_odd_entries(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.mat",
        [
            image("1.jpg", cells(person(), person()), frame_sec=3.0, vididx=7.0),
            image("2.jpg", person(), frame_sec=EMPTY, vididx=EMPTY),
            image("3.jpg", EMPTY, frame_sec=EMPTY, vididx=EMPTY),
            image("4.jpg", person(), frame_sec=1.0, vididx=np.nan),
        ],
        [
            act("sports", "tennis, hitting balls", 5.0),
            act(EMPTY, EMPTY, -1.0),
            act("", "", -1.0),
            act("self care", EMPTY, 9.0),
        ],
    )
    table = matlab.read(path)
    assert list(table.columns) == list(layout.COLUMNS)
    assert list(table["image"]) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert list(table["category"]) == ["sports", "", "", "self care"]
    assert list(table["activity"]) == ["tennis, hitting balls", "", "", ""]
    assert list(table["people"]) == [2, 1, 0, 1]
    assert list(table["labelled"]) == [True, False, False, True]
    assert list(table["video"]) == ["7", "", "", ""]


def test_an_act_id_of_minus_one_is_unlabelled_whatever_the_names(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mat", [image("1.jpg")], [act("sports", "tennis", -1.0)])
    assert not matlab.read(path)["labelled"].any()


def test_a_single_image_collapses_to_a_scalar_and_fields_may_be_absent(tmp_path: Path) -> None:
    table = matlab.read(save(tmp_path / "a.mat", [image("1.jpg")], [act("sports", "tennis", 1.0)]))
    assert table.to_numpy().tolist()[0][:3] == ["1.jpg", "sports", "tennis"]
    assert (table["video"] == "").all()


def test_names_keep_their_commas_through_the_csv(workspace: Path, drawn: Path) -> None:
    table = matlab.read(layout.annotation_file(drawn))
    write_csv(paths.ANNOTATIONS, table)
    again = pd.read_csv(paths.ANNOTATIONS, keep_default_na=False)
    assert list(again["activity"]) == list(table["activity"])
    assert again["activity"].str.contains(",").any()


def test_missing_and_repeated_images_are_counted_and_skipped(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpg", "1.jpg", "3.jpg"]
    path = save(tmp_path / "a.mat", [image(name) for name in names], [act("sports", "tennis", 1.0)] * 4)
    (tmp_path / "1.jpg").touch()
    (tmp_path / "3.jpg").touch()
    listed = matlab.read(path)
    kept = annotate.present(listed, tmp_path)
    assert list(kept["image"]) == ["1.jpg", "3.jpg"]
    counts = annotate.counts(listed, kept, 0)
    assert (counts["images"], counts["missing_images"], counts["repeated_images"]) == (2, 1, 1)


def test_no_image_at_all_is_one_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mat", [image("1.jpg")], [act("sports", "tennis", 1.0)])
    with pytest.raises(
        UserError, match="contains none of the 1 images that are listed, as 1.jpg; expected paths below it"
    ):
        annotate.present(matlab.read(path), tmp_path)


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/passwd", "a/../../b.jpg", "", EMPTY])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(UserError, match="leaves the images' folder"):
        matlab.read(save(tmp_path / "a.mat", [image(name)], [act("sports", "tennis", 1.0)]))


@pytest.mark.parametrize("video", ["3.0", np.array([1.0, 2.0]), 0.5, 1e20, np.uint64(2**63 + 5)])
def test_a_video_that_is_not_a_whole_number_is_refused_not_lost(tmp_path: Path, video: Any) -> None:
    path = save(tmp_path / "a.mat", [image("1.jpg", vididx=video)], [act("sports", "tennis", 1.0)])
    with pytest.raises(UserError, match=r"vididx of image 1.jpg is .*; expected a whole number or nothing"):
        matlab.read(path)


def test_two_spellings_of_a_path_are_one_name_and_spaces_are_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mat", [image("./a  b.jpg"), image("a  b.jpg")], [act("sports", "tennis", 1.0)] * 2)
    assert list(matlab.read(path)["image"]) == ["a  b.jpg", "a  b.jpg"]


def _crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_that_crashes_the_reader_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "_read", _crash)
    with pytest.raises(UserError, match="so broken that the reader crashes"):
        matlab.read(tmp_path / "a.mat")


def test_a_small_file_that_needs_much_memory_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MAX_MEMORY", 256 << 20)
    scipy.io.savemat(tmp_path / "bomb.mat", {"RELEASE": np.zeros(300 << 20, np.uint8)}, do_compression=True)
    assert (tmp_path / "bomb.mat").stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"bomb.mat: reading it needs more than 256 MiB of memory; download it again$"):
        matlab.read(tmp_path / "bomb.mat")


def test_a_memory_limit_of_the_user_is_kept_and_named(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "large.mat", {"RELEASE": np.zeros(600 << 20, np.uint8)}, do_compression=True)
    code = """if True:
        import resource, sys
        from pathlib import Path
        from stages.common.annotations import matlab
        from stages.common.runtime import errors
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (500 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        print(limit >> 20, flush=True)
        errors.run(lambda: matlab.read(Path(sys.argv[1])))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "large.mat")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    limit = ended.stdout.strip()
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"error: {tmp_path}/large.mat: reading it needs more than {limit} MiB of memory; download it again, or raise this "
        f"shell's memory limit of {limit} MiB (ulimit -v)"
    ]


def test_what_is_not_a_file_is_one_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mat")
    (tmp_path / "zeros.mat").symlink_to("/dev/zero")
    (tmp_path / "pickle.mat").write_bytes(pickle.dumps({"RELEASE": 1}) * 20)
    for name in ("pipe", "zeros", "pickle"):
        with pytest.raises(UserError, match=rf"{name}.mat: not a (MATLAB 5 )?file"):
            matlab.read(tmp_path / f"{name}.mat")


@pytest.mark.parametrize("name", ["a\n.jpg", "\x00.jpg", "\ud800.jpg"])
def test_names_that_a_text_file_can_not_hold_are_refused(name: str) -> None:
    assert not layout.is_inside(name)


def test_other_structs_are_one_error(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "other.mat", {"DATA": np.ones(3)})
    with pytest.raises(UserError, match="expected MPII's struct RELEASE"):
        matlab.read(tmp_path / "other.mat")
    scipy.io.savemat(tmp_path / "half.mat", {"RELEASE": struct(annolist=cells(image("1.jpg")))})
    with pytest.raises(UserError, match="a RELEASE without act"):
        matlab.read(tmp_path / "half.mat")
    with pytest.raises(UserError, match="2 images in annolist and 1 in act"):
        matlab.read(save(tmp_path / "a.mat", [image("1.jpg"), image("2.jpg")], [act("sports", "tennis", 1.0)]))


def test_broken_files_are_one_error(tmp_path: Path, drawn: Path) -> None:
    whole = layout.annotation_file(drawn).read_bytes()
    path = tmp_path / "broken.mat"
    for content in (b"", b"MATLAB", whole[:200], whole[: len(whole) // 2], whole[:-40], b"\x80\x04N." * 99):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken.mat: (not a MATLAB 5 file|broken or truncated)"):
            matlab.read(path)
    with pytest.raises(UserError, match="No such file"):
        matlab.read(tmp_path / "absent.mat")


def test_matlab_7_3_says_how_to_fix_it(tmp_path: Path) -> None:
    path = tmp_path / "new.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["RELEASE"] = 1
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(UserError, match="MATLAB 7.3 .* -v7"):
        matlab.read(path)


def test_the_file_is_found_below_and_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        layout.has_annotation_file(tmp_path / "absent")
    with pytest.raises(UserError, match=f"contains no {paths.MPII_ANNOTATIONS}"):
        layout.annotation_file(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / paths.MPII_ANNOTATIONS).touch()
    assert layout.annotation_file(tmp_path) == tmp_path / "below" / paths.MPII_ANNOTATIONS
    (tmp_path / paths.MPII_ANNOTATIONS).touch()
    with pytest.raises(UserError, match="more than once"):
        layout.annotation_file(tmp_path)


def test_a_link_to_a_folder_is_refused_as_dvc_does_not_see_behind_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / paths.MPII_ANNOTATIONS).touch()
    (tmp_path / "elsewhere/inner").mkdir(parents=True)
    (tmp_path / "data/images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="data/images is a link to a folder, .*expected a real folder: copy it"):
        layout.images_folder(tmp_path / "data")
    (tmp_path / "data/images").unlink()
    (tmp_path / "data/images").mkdir()
    (tmp_path / "data/images/linked").symlink_to(tmp_path / "elsewhere")
    for name in ("linked/1.jpg", "linked/inner/1.jpg"):
        (tmp_path / "elsewhere" / name.removeprefix("linked/")).touch()
        path = save(tmp_path / "a.mat", [image(name)], [act("sports", "tennis", 1.0)])
        with pytest.raises(UserError, match="images/linked is a link to a folder"):
            annotate.present(matlab.read(path), tmp_path / "data/images")


def test_a_link_to_an_image_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").symlink_to(tmp_path / "a.mat")
    path = save(tmp_path / "a.mat", [image("1.jpg")], [act("sports", "tennis", 1.0)])
    assert list(annotate.present(matlab.read(path), tmp_path / "images")["image"]) == ["1.jpg"]


@pytest.mark.slow
def test_the_full_file(shared: Callable[[str], Path]) -> None:
    path = shared("mpii/full/mpii_human_pose_v1_u12_1.mat")
    table = matlab.read(path)
    assert len(table) == table["image"].nunique() == 24_987
    labelled = table[table["labelled"]]
    counts = labelled["category"].value_counts()
    assert len(labelled) == 16_646
    assert len(counts) == 20
    # The same counts without squeezing and without the stage's code.
    acts = scipy.io.loadmat(path)["RELEASE"]["act"][0, 0]
    names = Counter(str(name[0]) for name in acts["cat_name"].ravel() if name.size)
    assert counts.to_dict() == names
    assert (labelled["video"] != "").all()


def test_the_real_photographs(shared: Callable[[str], Path]) -> None:
    folder = shared("mpii/actions10")
    listed = matlab.read(layout.annotation_file(folder))
    counts = annotate.counts(listed, annotate.present(listed, layout.images_folder(folder)), 0)
    assert (counts["images"], counts["labelled"], counts["unlabelled"]) == (985, 639, 346)
    assert (counts["categories"], counts["activities"], counts["missing_images"]) == (1, 13, 0)
