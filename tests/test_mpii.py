"""The stage that downloads MPII, against a real server on loopback that breaks off or serves something else."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stages import annotate, mpii
from stages.common.annotations import matlab
from stages.common.images import download, layout
from stages.common.images.download import BLOCK
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import Mpii
from stages.common.runtime.resuming import resumable
from tests.conftest import ROOT, set_parameters
from tests.server import Server, first_byte
from tests.test_archives import member, tar, zipped


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def section(server: Server, drawn: Path) -> Mpii:
    """The drawn sample as MPII's two archives on the server."""
    images, annotations = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=images, mode="w:gz") as archive:
        archive.add(drawn / "images", "images")
    with zipfile.ZipFile(annotations, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(layout.annotation_file(drawn), f"mpii_human_pose_v1_u12_2/{paths.MPII_ANNOTATIONS}")
        file.writestr("mpii_human_pose_v1_u12_2/README.md", "MPII")
    return serve(server, images.getvalue(), annotations.getvalue())


def serve(server: Server, images: bytes, annotations: bytes) -> Mpii:
    server.files |= {"v1.tar.gz": images, "v1.zip": annotations}
    md5 = hashlib.md5(images, usedforsecurity=False).hexdigest()
    return Mpii(images_url=server.url("v1.tar.gz"), images_md5=md5, annotations_url=server.url("v1.zip"))


def fetch(section: Mpii, folder: Path) -> Path:
    mpii.fetch(section, folder / "mpii")
    return folder / "mpii"


def downloads(section: Mpii, folder: Path) -> Path:
    """Where `fetch` keeps what it has received."""
    with suppress(KeyboardInterrupt), resumable(folder / "mpii", section.images_url, section.annotations_url) as found:
        raise KeyboardInterrupt
    return found


def give_up(section: Mpii, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that ends after 250,000 bytes of the images."""
    with monkeypatch.context() as patch:
        patch.setattr(download, "MAX_FAILURES", 1)
        server.cuts, server.cut = 2, 250_000
        with pytest.raises(UserError, match="v1.tar.gz: .*the part received is kept"):
            fetch(section, folder)
    server.asked.clear()


def is_complete(folder: Path) -> bool:
    """Whether MPII's layout is there with all the sample's images."""
    table = matlab.read(layout.annotation_file(folder))
    return len(annotate.present(table, layout.images_folder(folder))) == 160


def test_mpiis_layout_arrives(section: Mpii, tmp_path: Path, drawn: Path) -> None:
    out = fetch(section, tmp_path)
    assert is_complete(out)
    for path in (drawn / "images").iterdir():
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["mpii"]


def test_another_run_resumes_after_one_that_gave_up(
    section: Mpii, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(section, server, tmp_path, monkeypatch)
    assert is_complete(fetch(section, tmp_path))
    assert server.ranges_of("v1.zip") == []
    (wanted,) = server.ranges_of("v1.tar.gz")
    assert 250_000 - BLOCK < first_byte(wanted) <= 250_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_resumes_where_it_was(section: Mpii, server: Server, workspace: Path, number: int) -> None:
    values = {f"mpii.{key}": value for key, value in section.model_dump().items()}
    set_parameters(workspace / "params.yaml", values | {"data": "./data/raw/mpii"})
    command = [sys.executable, "-m", "stages.mpii"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server.pause = 0.05
    process = subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True)
    while not any(part.stat().st_size > 200_000 for part in workspace.glob("data/raw/.mpii.resume/*/images.*.part")):
        assert process.poll() is None
    process.send_signal(number)
    written = process.communicate()[1]
    assert "Traceback" not in written
    assert (f"stopped by {signal.Signals(number).name}: run again to resume" in written) == (number != signal.SIGKILL)
    server.pause = 0
    server.asked.clear()
    ended = subprocess.run(command, cwd=workspace, env=environment, check=True, capture_output=True, text=True)
    assert "mpii: 161 files in data/raw/mpii" in ended.stdout
    ((name, wanted),) = server.asked
    assert name == "v1.tar.gz"
    assert first_byte(wanted) > 200_000 - BLOCK
    assert is_complete(workspace / "data/raw/mpii")
    assert [path.name for path in (workspace / "data/raw").iterdir()] == ["mpii"]


def test_nothing_is_downloaded_for_another_data_set(workspace: Path) -> None:
    with pytest.raises(UserError, match="MPII is not needed, as data is another data set; to download it, set data to"):
        mpii.main()
    assert not Path(paths.MPII).exists()


def test_what_another_address_sent_is_removed_not_continued(
    section: Mpii, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(section, server, tmp_path, monkeypatch)
    server.files["moved/v1.tar.gz"] = server.files["v1.tar.gz"]
    fetch(section.model_copy(update={"images_url": server.url("moved/v1.tar.gz")}), tmp_path)
    assert server.ranges_of("moved/v1.tar.gz") == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["mpii"]


def test_another_md5_is_refused_and_only_the_wrong_archive_is_deleted(
    section: Mpii, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"md5 \w+, expected 0+ \(mpii.images_md5\)"):
        fetch(section.model_copy(update={"images_md5": "0" * 32}), tmp_path)
    assert not (tmp_path / "mpii").exists()
    assert [path.name for path in downloads(section, tmp_path).iterdir()] == ["annotations.zip"]
    server.asked.clear()
    assert is_complete(fetch(section, tmp_path))
    assert server.asked == [("v1.tar.gz", None)]


def test_too_small_a_disk_is_noticed_before_the_download(
    section: Mpii, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0.0 GB free, .* GB needed to download"):
        fetch(section, tmp_path)
    assert not list(downloads(section, tmp_path).iterdir())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (tar(member("../outside.jpg")), "leaves the folder"),
        (tar(member("images/link.jpg", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
        (tar(member("images/a.jpg", size=9))[:-20], "not a complete .tar.gz"),
        (tar(member("photos/a.jpg")), "contains no images/"),
        (tar(member("./", tarfile.DIRTYPE), member("./photos/a.jpg")), "contains no images/"),
    ],
    # The bytes contain the time of their making; tests need the same names in all processes.
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_refused_images_leave_the_downloads_and_nothing_else(
    section: Mpii, server: Server, tmp_path: Path, images: bytes, message: str
) -> None:
    hostile = serve(server, images, server.files["v1.zip"])
    with pytest.raises(UserError, match=message):
        fetch(hostile, tmp_path / "deep/er")
    assert not (tmp_path / "deep/er/mpii").exists()
    found = {path.name for path in tmp_path.rglob("*")}
    kept = downloads(hostile, tmp_path / "deep/er")
    assert found == {"deep", "er", ".mpii.resume", kept.name, "annotations.zip", "images.tar.gz"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../a.mat"], "leaves the folder"),
        (["readme"], "contains 0 files"),
        (["a/" + paths.MPII_ANNOTATIONS, "b/" + paths.MPII_ANNOTATIONS], "contains 2 files"),
    ],
)
def test_refused_annotations_leave_no_data_set(
    section: Mpii, server: Server, tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fetch(serve(server, server.files["v1.tar.gz"], zipped(*names)), tmp_path)
    assert not (tmp_path / "mpii").exists()
