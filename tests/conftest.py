"""What several tests need: a small clone of the repository, small data sets, and real photographs if they are available."""

import contextlib
import fcntl
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# The default, set explicitly: Keras then starts without JAX, which is here for a few tests. Hundreds of stages start.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Read when NumPy is loaded. Two stages at once with two threads each wait for each other: twice the time of a solver.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# In a repository without the project's configuration DVC would fork the process and report its use.
os.environ["DVC_NO_ANALYTICS"] = "1"

import numpy as np
import pandas as pd
import pytest
import yaml

from stages.common.dataset import chunks
from stages.common.runtime import errors, paths
from stages.common.runtime.parameters import Backbone

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Small enough for seconds, large enough that each stage has something to do.
TINY = {
    "model": "scratch",
    "sample.images": 160,
    "resize.size": 72,
    "resize.chunk": 32,
    **{
        f"{model}.{key}": value
        for model in ("scratch", "selfsupervised")
        for key, value in (("filters", [4, 8]), ("epochs", 2))
    },
    "pretrain.epochs": 2,
    "pretrain.batch_size": 32,
    "backbone.name": "mobilenet",  # the smallest one
    **{
        f"{model}.{key}": value
        for model in ("vgg16", "xception", "backbone")
        for key, value in (("epochs", 2), ("input_size", 72))
    },
}


# Started last, one of them would keep one process busy for a minute or more while the other is idle.
LONGEST = (
    *("test_dvc_yaml", "test_killed", "test_pipeline", "test_pull_request", "test_reproducible"),
    *("test_compare", "test_distribution", "test_export", "test_hub", "test_networks", "test_selfsupervised"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this run of the tests."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _python_of_the_tests() -> Iterator[None]:
    """Stages are started as `python`: it must be the one that runs the tests."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    yield
    os.environ["PATH"] = before


@pytest.fixture(scope="session", autouse=True)
def _jax_compiles_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache of compiled functions for all processes of the tests."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(of_all_processes(tmp_path_factory) / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_the_stages() -> Iterator[None]:
    """In the background of a shell, and under nohup, signals are ignored, also by the processes that a test starts."""
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


class Clone:
    """A git repository with the working tree's files and tiny parameters, and what is asked of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *command: str, ok: bool = True, **environment: str) -> str:
        """Run a command in the clone; its output, stderr included. Fails the test unless it ends as `ok` says."""
        result = subprocess.run(
            command,
            cwd=self.path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (result.returncode == 0) == ok, result.stdout
        return result.stdout

    def call(self, main: Callable[[], None], *arguments: str, ok: bool = True) -> str:
        """What `run` returns for the command whose function is `main`, without a process of its own, whose start takes longer."""
        shown = io.StringIO()
        code: str | int | None = 0
        with (
            contextlib.chdir(self.path),
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", ["command", *arguments])
            for name in ("dvc", "dvc_data", "dvc_objects"):  # which log to the streams that they were imported with
                for handler in logging.getLogger(name).handlers:
                    patch.setattr(handler, "stream", shown)
            try:
                try:
                    main()
                except errors.UserError as error:
                    errors.fail(str(error))
            except SystemExit as ended:
                code = ended.code
        text = shown.getvalue() + (f"{code}\n" if isinstance(code, str) else "")
        assert (code in (0, None)) == ok, text
        return text

    def dvc(self, *arguments: str) -> str:
        """What `run` returns for DVC's commands that start no process themselves: little but their start takes time."""
        from dvc import cli

        return self.call(lambda: sys.exit(cli.main()), *arguments)

    def set(self, **values: Any) -> None:
        """Change parameters; `__` stands for the dot."""
        set_parameters(self.path / "params.yaml", {key.replace("__", "."): value for key, value in values.items()})

    def json(self, name: str) -> Any:
        """What a JSON file of the clone holds."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def set_parameters(path: Path, values: dict[str, Any]) -> None:
    """Change the parameters named by dotted keys in a params.yaml."""
    parameters = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        *sections, last = key.split(".")
        section = parameters
        for name in sections:
            section = section[name]
        section[last] = value
    path.write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")


def make_clone(path: Path) -> Clone:
    """Clone the working tree into `path`, without dvc.lock files: nothing counts as done."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and not name.endswith("dvc.lock"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
    set_parameters(path / "params.yaml", TINY)
    clone = Clone(path)
    clone.run("git", "init", "-q")
    clone.run("git", "config", "user.name", "Test")
    clone.run("git", "config", "user.email", "test@example.org")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "Clone")
    return clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make_clone(tmp_path / "clone")


class Finished(NamedTuple):
    """A clone in which `dvc repro` has run once, with everything committed. Do not change it: copy it."""

    path: Path
    shown: str  # by this `dvc repro`

    def copy(self, path: Path) -> Clone:
        return Clone(shutil.copytree(self.path, path, symlinks=True))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One for all test processes: the first that asks for it makes it while the others wait."""
    folder = of_all_processes(tmp_path_factory)
    path, shown = folder / "finished", folder / "finished.txt"
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shown.exists():
            shutil.rmtree(path, ignore_errors=True)  # of another process that has failed
            clone = make_clone(path)
            text = clone.run("dvc", "repro")
            clone.run("git", "add", "-A")
            clone.run("git", "commit", "-qm", "First results")
            shown.write_text(text, encoding="utf-8")
    return Finished(path, shown.read_text(encoding="utf-8"))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with tiny parameters, as the current one: for stages that are called in this process."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    set_parameters(tmp_path / "params.yaml", {**TINY, "pretrain.extra": "extra"})
    (tmp_path / "extra").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])  # not that of pytest
    chunks._open.cache_clear()  # the same relative path is another file now
    return tmp_path


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest drawn sample."""
    from stages import sample

    folder = tmp_path_factory.mktemp("drawn")
    sample.draw(160, folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Real MPII material by its path below the shared folder; the test is skipped where that is absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs real MPII material, which is not beside this clone: {name}")
        return SHARED / name

    return find


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """Eight images of noise, (8, 72, 72, 3) uint8."""
    return np.random.default_rng(0).integers(0, 255, (8, 72, 72, 3), dtype=np.uint8)


@pytest.fixture
def small_network(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone of few layers, by the name `small`: a real one is built, loaded and saved in seconds.

    It has what the real ones have: convolutions of both kinds, batch normalisation, ReLU6.
    """
    from stages.common.backbones.catalog import NETWORKS
    from stages.common.backbones.network import Network
    from stages.common.runtime.backend import keras

    def build(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
        images = x = keras.Input(input_shape)
        for layer in (
            keras.layers.Conv2D(8, 3, 2, "same", use_bias=False),
            keras.layers.DepthwiseConv2D(3, 2, "same", use_bias=False),
            keras.layers.Conv2D(16, 3, 2, "same", use_bias=False),
        ):
            x = keras.layers.ReLU(6)(keras.layers.BatchNormalization()(layer(x)))
        return keras.Model(images, x, name="small")

    monkeypatch.setattr(keras.applications, "Small", build, raising=False)
    monkeypatch.setitem(NETWORKS, "small", Network("applications", "Small", 224, "tf"))
    set_parameters(workspace / "params.yaml", {"backbone.name": "small"})


@pytest.fixture
def coloured_split(workspace: Path, small_network: None) -> pd.DataFrame:
    """The split of 48 images of 32x32 pixels, whose three labels differ in colour; data/resized has their pixels."""
    generator = np.random.default_rng(1)
    pixels = np.repeat(generator.integers(0, 60, (48, 1, 1, 3), dtype=np.uint8), 32, axis=1).repeat(32, axis=2)
    numbers = np.arange(48) % 3
    pixels[np.arange(48), :, :, numbers] += 120
    names = [f"{number}.jpg" for number in range(48)]
    for start in (0, 24):
        part = slice(start, start + 24)
        chunks.write(paths.RESIZED / f"{start:05d}.h5", names[part], {"pixels": pixels[part]})
    parts = ["train"] * 24 + ["validation"] * 12 + ["test"] * 12
    return pd.DataFrame({"image": names, "part": parts, "label": np.array(["a", "b", "c"])[numbers], "video": ""})


def pretrained_section(**changes: Any) -> Backbone:
    """The section of a pretrained model that suits `coloured_split`."""
    values = {
        "name": "small",
        "input_size": 48,
        "precision": "float32",
        "head": "softmax",
        "l2": 10.0,
        "batch_size": 8,
        "learning_rate": 0.01,
        "epochs": 6,
        "patience": 6,
        "imbalance": "class_weight",
        "fine_tune_epochs": 2,
        "fine_tune_layers": 4,
        "fine_tune_learning_rate": 1e-4,
        "refit": False,
    }
    return Backbone.model_validate(values | changes)


def extract_features(section: Backbone) -> None:
    """Write the features of data/resized by a network with random weights, and the network, where train finds them."""
    from stages import features
    from stages.common.backbones.backbone import backbone
    from stages.common.backbones.catalog import find
    from stages.common.networks.serialization import save
    from stages.common.runtime import jobs
    from stages.common.runtime.backend import device

    rows = chunks.Rows(paths.RESIZED, "pixels")
    images = rows.read(list(rows.places)[: features.EXAMPLES])
    model = backbone(find(section.name), rows.shape[0], section.pixels, "random", images)
    folder, file, stage = paths.features("backbone"), paths.backbone("backbone"), "features-backbone"
    save(model, file, [])
    where = jobs.where(stage, device)
    assert features.extract(model, file, paths.RESIZED, folder, section.features, stage, where) == len(rows)
