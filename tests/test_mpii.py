"""The download, against a real server on loopback that breaks off, knows no ranges, or serves what it should not."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages import annotate, mpii
from stages.common import layout
from stages.common.parameters import Mpii
from stages.common.problem import Problem
from stages.common.resuming import resumable
from tests.conftest import ROOT, set_parameters


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` bytes at most of each answer while `cuts` lasts; with or without ranges; with pauses."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cuts = 0
        self.cut = 0
        self.asked: list[tuple[str, str | None]] = []
        self.status = 200
        self.pause = 0.0
        self.wait = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.strip("/"))
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path.strip("/"), wanted))
        if content is None or self.server.status != 200:
            self.send_error(404 if content is None else self.server.status)
            return
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: self.server.cut]
        with suppress(ConnectionError):  # a client that was killed
            for start in range(0, len(body), mpii.BLOCK):
                self.wfile.write(body[start : start + mpii.BLOCK])
                self.server.wait.wait(self.server.pause)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def section(server: Server, drawn: Path) -> Mpii:
    """The drawn sample as MPII's two archives on the server."""
    images, annotations = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=images, mode="w:gz") as tar:
        tar.add(drawn / "images", "images")
    with zipfile.ZipFile(annotations, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(layout.annotation_file(drawn), f"mpii_human_pose_v1_u12_2/{layout.ANNOTATIONS}")
        archive.writestr("mpii_human_pose_v1_u12_2/README.md", "MPII")
    return serve(server, images.getvalue(), annotations.getvalue())


def serve(server: Server, images: bytes, annotations: bytes) -> Mpii:
    server.files |= {"v1.tar.gz": images, "v1.zip": annotations}
    md5 = hashlib.md5(images, usedforsecurity=False).hexdigest()
    return Mpii(images_url=server.url("v1.tar.gz"), images_md5=md5, annotations_url=server.url("v1.zip"))


def fetch(section: Mpii, folder: Path) -> Path:
    mpii.fetch(section, folder / "mpii")
    return folder / "mpii"


def downloads(section: Mpii, folder: Path) -> Path:
    """Where `fetch` keeps what has arrived."""
    with suppress(Interrupted), resumable(folder / "mpii", section.images_url, section.annotations_url) as found:
        raise Interrupted
    return found


class Interrupted(Exception):
    pass


def give_up(section: Mpii, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that ends after 250,000 bytes of the images."""
    monkeypatch.setattr(mpii, "TRIES", 1)
    server.cuts, server.cut = 2, 250_000
    with pytest.raises(Problem, match="what has arrived is kept"):
        fetch(section, folder)
    server.asked.clear()


def ranges(server: Server, name: str) -> list[str | None]:
    return [wanted for asked, wanted in server.asked if asked == name]


def resumed_at(wanted: str | None) -> int:
    assert wanted is not None
    return int(wanted.removeprefix("bytes=").rstrip("-"))


def test_mpiis_layout_arrives(section: Mpii, tmp_path: Path, drawn: Path) -> None:
    out = fetch(section, tmp_path)
    assert len(annotate.present(annotate.read(layout.annotation_file(out)), layout.images_folder(out))) == 160
    for path in (drawn / "images").iterdir():
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["mpii"]


@pytest.mark.usefixtures("no_pause")
def test_a_cut_connection_goes_on_where_it_broke_off(section: Mpii, server: Server, tmp_path: Path) -> None:
    server.cuts, server.cut = 4, 300_000
    out = fetch(section, tmp_path)
    assert (out / "images").is_dir()
    assert len(ranges(server, "v1.tar.gz")) >= 2
    assert resumed_at(ranges(server, "v1.tar.gz")[1]) > 300_000 - mpii.BLOCK


@pytest.mark.usefixtures("no_pause")
def test_a_server_without_ranges_sends_all_of_it_again(section: Mpii, server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts, server.cut = False, 2, 100_000
    assert (fetch(section, tmp_path) / "images").is_dir()


@pytest.mark.usefixtures("no_pause")
def test_another_run_goes_on_after_one_that_gave_up(
    section: Mpii, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(section, server, tmp_path, monkeypatch)
    fetch(section, tmp_path)
    assert ranges(server, "v1.zip") == []
    (wanted,) = ranges(server, "v1.tar.gz")
    assert 250_000 - mpii.BLOCK < resumed_at(wanted) <= 250_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_goes_on_where_it_was(section: Mpii, server: Server, workspace: Path, number: int) -> None:
    values = {f"mpii.{key}": value for key, value in section.model_dump().items()}
    set_parameters(workspace / "params.yaml", values)
    command = [sys.executable, "-m", "stages.mpii"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server.pause = 0.05
    process = subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True)
    while not any(part.stat().st_size > 200_000 for part in workspace.glob("data/raw/.mpii.resume/*/images.*.part")):
        assert process.poll() is None
    process.send_signal(number)
    assert "Traceback" not in process.communicate()[1]
    server.pause = 0
    server.asked.clear()
    subprocess.run(command, cwd=workspace, env=environment, check=True, capture_output=True)
    ((name, wanted),) = server.asked
    assert name == "v1.tar.gz"
    assert resumed_at(wanted) > 200_000 - mpii.BLOCK
    images = layout.images_folder(workspace / "data/raw/mpii")
    assert len(annotate.present(annotate.read(layout.annotation_file(workspace / "data/raw/mpii")), images)) == 160
    assert [path.name for path in (workspace / "data/raw").iterdir()] == ["mpii"]


@pytest.mark.usefixtures("no_pause")
def test_what_another_address_sent_is_removed_not_continued(
    section: Mpii, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(section, server, tmp_path, monkeypatch)
    server.files["moved/v1.tar.gz"] = server.files["v1.tar.gz"]
    fetch(section.model_copy(update={"images_url": server.url("moved/v1.tar.gz")}), tmp_path)
    assert ranges(server, "moved/v1.tar.gz") == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["mpii"]


@pytest.mark.usefixtures("no_pause")
def test_a_download_that_was_whole_already_is_not_fetched_again(section: Mpii, server: Server, tmp_path: Path) -> None:
    (downloads(section, tmp_path) / "images.tar.gz.part").write_bytes(server.files["v1.tar.gz"])
    assert (fetch(section, tmp_path) / "images").is_dir()
    assert ranges(server, "v1.tar.gz") == [f"bytes={len(server.files['v1.tar.gz'])}-"]


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses_is_one_problem(section: Mpii, server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    if status == 404:
        server.files.clear()
    with pytest.raises(Problem, match=f"v1.zip: the server answers {status}"):
        fetch(section, tmp_path)
    assert len(server.asked) == (1 if status == 404 else mpii.TRIES)


@pytest.mark.usefixtures("no_pause")
def test_a_server_that_is_not_there_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no answer or a broken connection"):
        mpii.download("http://127.0.0.1:9/x.zip", tmp_path / "x.zip")


def test_another_md5_is_refused_and_the_archive_deleted(section: Mpii, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"md5 \w+, expected 0+ "):
        fetch(section.model_copy(update={"images_md5": "0" * 32}), tmp_path)
    assert not (tmp_path / "mpii").exists()
    assert [path.name for path in downloads(section, tmp_path).iterdir()] == ["annotations.zip"]


def test_too_small_a_disk_is_noticed_before_the_download(
    section: Mpii, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Problem, match="0.0 GB free, .* GB needed to download"):
        fetch(section, tmp_path)
    assert not list(downloads(section, tmp_path).iterdir())


def tar(*members: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"\0" * member.size))
    return content.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tar(member("../outside.jpg")), "leaves the folder"),
        (tar(member("/tmp/outside.jpg")), "leaves the folder"),  # noqa: S108
        (tar(member("images/link.jpg", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
        (tar(member("images/hard.jpg", tarfile.LNKTYPE, "../../outside")), "is a link"),
        (tar(member("images/device", tarfile.CHRTYPE)), "a device"),
        (tar(member("images/pipe", tarfile.FIFOTYPE)), "a device"),
        (tar(member("images/\n.jpg")), "leaves the folder"),
        (tar(member("images/bomb.jpg", size=5_000_000)), "expands to more than"),
        (tar(member("./" + "x" * 5_000_000)), "expands to more than"),
        (tar(*(member(f"images/{number}.jpg") for number in range(20_000))), "expands to more than"),
        (b"\x1f\x8b broken", "not a whole .tar.gz"),
        (tar(member("images/a.jpg", size=9))[:-20], "not a whole .tar.gz"),
        (tar(member("photos/a.jpg")), "holds no images/"),
        (tar(member("./", tarfile.DIRTYPE), member("./photos/a.jpg")), "holds no images/"),
        (tar(member("images/a"), member("images/a/b")), "not a whole .tar.gz .*Not a directory"),
        (tar(member("images/" + "x" * 300)), "not a whole .tar.gz .*name too long"),
    ],
    # The bytes say when they were made; tests need the same names in all processes.
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_an_unsafe_or_broken_archive_is_refused(
    section: Mpii, server: Server, tmp_path: Path, archive: bytes, message: str
) -> None:
    hostile = serve(server, archive, server.files["v1.zip"])
    with pytest.raises(Problem, match=message):
        fetch(hostile, tmp_path / "deep/er")
    assert not (tmp_path / "deep/er/mpii").exists()
    found = {path.name for path in tmp_path.rglob("*")}
    kept = downloads(hostile, tmp_path / "deep/er")
    assert found == {"deep", "er", ".mpii.resume", kept.name, "annotations.zip", "images.tar.gz"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../a.mat"], "leaves the folder"),
        (["readme"], "holds 0 files"),
        (["a/" + layout.ANNOTATIONS, "b/" + layout.ANNOTATIONS], "holds 2"),
    ],
)
def test_an_unsafe_or_other_zip_is_refused(
    section: Mpii, server: Server, tmp_path: Path, names: list[str], message: str
) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(Problem, match=message):
        fetch(serve(server, server.files["v1.tar.gz"], content.getvalue()), tmp_path)
    assert not (tmp_path / "mpii").exists()
