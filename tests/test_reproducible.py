"""Two fresh clones on one machine end with the same bytes, for each kind of model, whatever the number of worker processes."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from stages.common.runtime import paths
from stages.common.runtime.parameters import MODELS
from tests.conftest import Clone, make_clone

pytestmark = pytest.mark.slow

STATE_TIME = (
    "models/{}/timing",
    "models/{}/timing/train.json",
    "models/{}/timing/features.json",
    "metrics/training.json",
    "plots/report.html",
)


def md5s(clone: Clone) -> dict[str, Any]:
    """What the lock files say of each stage: parameters, and size and md5 of each input and output; time apart."""
    found: dict[str, Any] = {}
    timing = {path.format(model) for path in STATE_TIME for model in MODELS}
    for lock in paths.LOCKS:
        for name, stage in yaml.safe_load((clone.path / lock).read_text(encoding="utf-8"))["stages"].items():
            entries = {
                e["path"]: e for kind in ("deps", "outs") for e in stage.get(kind, []) if e["path"] not in timing
            }
            found[name] = {"params": stage.get("params"), **entries}
    return found


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> list[Clone]:
    """Two git clones of one commit, in which dropout, augmentation and fine-tuning are on."""
    folder = tmp_path_factory.mktemp("reproducible")
    origin = make_clone(folder / "origin")
    origin.set(model="backbone", resize__chunk=16, backbone__head="conv", backbone__epochs=1)
    # The refit does the same once more, with more images.
    origin.set(backbone__fine_tune_epochs=1, backbone__fine_tune_learning_rate=0.001, backbone__refit=False)
    origin.run("git", "commit", "-qam", "Everything random on")
    for name in ("one", "other"):
        origin.run("git", "clone", "-q", str(origin.path), str(folder / name))
    one, other = Clone(folder / "one"), Clone(folder / "other")
    # One worker process here, as many as there are processors there.
    one.run("taskset", "-c", str(min(os.sched_getaffinity(0))), "dvc", "repro", "chunked-resize")
    return [one, other]


# The other models are trained by the same code; two runs of scratch are compared in test_killed.
def test_two_clones_write_the_same_lock_files(clones: list[Clone]) -> None:
    with ThreadPoolExecutor() as pool:  # at once: what else the machine does must not matter either
        list(pool.map(lambda clone: clone.run("dvc", "repro", "evaluate"), clones))
    one, other = map(md5s, clones)
    assert one == other
    outputs = one["evaluate"].keys() | one["train-backbone"].keys()
    assert {"models/backbone/predictions.csv", "metrics/evaluation.json", "models/backbone/model.keras"} <= outputs
    assert all("md5" in entry for stage in one.values() for key, entry in stage.items() if key != "params")


# The same scores, whatever cuts sums in other pieces: older instructions and one core, TensorFlow's own kernels, JAX.
ELSEWHERE = {
    "AVX2, one core": {"ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"},
    "without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "JAX": {"KERAS_BACKEND": "jax"},
}
SCORES = ("metrics/evaluation.json", "plots/labels.csv", "plots/confusion.csv")


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The default model, on smaller and fewer images: whole batches, as JAX compiles the network for each size."""
    clone = make_clone(tmp_path_factory.mktemp("default") / "clone")
    clone.set(model="backbone", sample__images=256, backbone__name="efficientnet_lite0")
    clone.run("dvc", "repro", "evaluate", OPENBLAS_NUM_THREADS=str(os.cpu_count()))
    return clone


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_default_model_has_the_same_scores_on_other_machines(default: Clone, name: str) -> None:
    expected = {path: (default.path / path).read_bytes() for path in SCORES}
    features = [(default.path / path).read_bytes() for path in ("data/features/backbone/00000.h5",)]
    environment = {"OPENBLAS_NUM_THREADS": str(os.cpu_count())} | ELSEWHERE[name]
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if "one core" in name else []
    for step in (["features", "backbone"], ["train", "backbone"], ["infer", "backbone"], ["evaluate"]):
        default.run(*command, "python", "-m", f"stages.{step[0]}", *step[1:], ok=True, **environment)
    assert {path: (default.path / path).read_bytes() for path in SCORES} == expected
    # On some processors the first two change no bit; if nothing did, this test would compare a run with itself.
    assert name != "JAX" or [(default.path / "data/features/backbone/00000.h5").read_bytes()] != features
