"""Downloads, from a real server on loopback that breaks off, knows no ranges or refuses."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.common.images import download as module
from stages.common.images.download import BLOCK, MAX_FAILURES, download
from stages.common.runtime.errors import UserError
from tests.server import Server, first_byte

CONTENT = np.random.default_rng(1).bytes(1_500_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.files["a.zip"] = CONTENT
        yield server


def fetch(server: Server, folder: Path) -> bytes:
    """What arrives."""
    download(server.url("a.zip"), folder / "a.zip", "test", pause=0)
    assert [path.name for path in folder.iterdir()] == ["a.zip"]
    return (folder / "a.zip").read_bytes()


def give_up(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that ends after 250,000 bytes."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_FAILURES", 1)
        server.cuts, server.cut = 1, 250_000
        with pytest.raises(UserError, match="the part received is kept: run again to resume"):
            fetch(server, folder)
    server.asked.clear()


def test_a_file_arrives_and_is_not_fetched_a_second_time(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == [("a.zip", None)]
    assert fetch(server, tmp_path) == CONTENT
    assert len(server.asked) == 1


def test_a_download_resumes_where_the_connection_broke(server: Server, tmp_path: Path) -> None:
    server.cuts, server.cut = 4, 300_000
    assert fetch(server, tmp_path) == CONTENT
    ranges = server.ranges_of("a.zip")
    assert ranges[0] is None
    starts = [first_byte(wanted) for wanted in ranges[1:]]
    assert len(starts) == 4
    for before, after in zip([0, *starts[:-1]], starts, strict=True):
        assert 300_000 - BLOCK < after - before <= 300_000


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts, server.cut = False, 2, 100_000
    assert fetch(server, tmp_path) == CONTENT


def test_another_run_resumes_after_one_that_gave_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(server, tmp_path, monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip.part"]
    assert fetch(server, tmp_path) == CONTENT
    (wanted,) = server.ranges_of("a.zip")
    assert 250_000 - BLOCK < first_byte(wanted) <= 250_000


def test_a_part_that_was_complete_already_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path) == CONTENT
    assert server.ranges_of("a.zip") == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_servers_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path) == CONTENT
    assert server.ranges_of("a.zip") == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses_is_one_error(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    if status == 404:
        server.files.clear()
    with pytest.raises(UserError, match=f"a.zip: the server answers {status}"):
        fetch(server, tmp_path)
    assert len(server.asked) == (1 if status == 404 else MAX_FAILURES)


def test_each_retry_waits_twice_as_long(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.status = 503
    with pytest.raises(UserError, match="the server answers 503"):
        download(server.url("a.zip"), tmp_path / "a.zip", "test", pause=2)
    assert waited == [2 * 2**failure for failure in range(MAX_FAILURES - 1)]


def test_breaks_are_counted_from_the_last_byte_received(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.cuts, server.cut = MAX_FAILURES + 2, 150_000
    download(server.url("a.zip"), tmp_path / "a.zip", "test", pause=2)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert waited == [2] * (MAX_FAILURES + 2)


def test_a_server_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no answer or a broken connection"):
        download("http://127.0.0.1:9/x.zip", tmp_path / "x.zip", "test", pause=0)


@pytest.mark.parametrize("url", ["http://.example.org/x", "http://a..b/x", f"http://{'x' * 64}.org/x", "http://[/x"])
def test_what_is_not_an_address_is_one_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=re.escape(url)):
        download(url, tmp_path / "x.zip", "test", pause=0)
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_noticed_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0.0 GB free, .* GB needed to download"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())
