"""What the benchmarks need, and that the ablation calls nothing better that is not."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ablation, pipeline
from benchmarks.__main__ import PARTS
from stages.common.comparison.results import Result
from stages.common.evaluation.bootstrap import Difference
from stages.common.runtime import paths
from stages.common.runtime.parameters import Backbone, Pretrained
from stages.common.runtime.plain_yaml import parse_yaml
from tests.conftest import ROOT, Clone, make_clone


def test_every_part_is_a_file_and_the_header_names_the_commit(clone: Clone) -> None:
    assert all((ROOT / f"benchmarks/{part}.py").is_file() for part in PARTS)
    head = clone.run("git", "rev-parse", "--short", "HEAD").strip()
    show = (sys.executable, "-c", "from benchmarks.__main__ import hardware; print(hardware())")
    assert f"commit {head}, " in clone.run(*show)
    (clone.path / "README.md").write_text("")
    assert f"commit {head} with changes, " in clone.run(*show)


@pytest.mark.slow
def test_the_empty_pipeline_has_the_same_stages_and_outputs_and_runs(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    empty = pipeline.empty_copy(clone.path, tmp_path / "empty")
    for file in paths.PIPELINES:
        ours, theirs = (parse_yaml((path / file).read_text(encoding="utf-8"))["stages"] for path in (clone.path, empty))
        assert {name: stage | {"cmd": ""} for name, stage in ours.items()} == {
            name: stage | {"cmd": ""} for name, stage in theirs.items()
        }
    for expected in ("Running stage 'evaluate'", "Data and pipelines are up to date"):
        shown = subprocess.run(["dvc", "repro"], cwd=empty, capture_output=True, text=True, check=True).stdout
        assert expected in shown


@pytest.mark.slow
def test_the_gpu_benchmark_has_a_dry_run(workspace: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--images", "32", "--models", "vgg16"],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("CPU: a dry run. ")
    lines = [line.split("|")[1:4] for line in ended.stdout.splitlines() if line.startswith("|")]
    assert [[value.strip() for value in line] for line in lines[2:]] == [
        ["VGG16", "32", precision] for precision in ("float32", "bfloat16")
    ]


def test_the_gpu_benchmark_finds_the_network_of_each_model() -> None:
    from benchmarks import gpu  # loads JAX

    values = parse_yaml((ROOT / paths.PARAMETERS).read_text(encoding="utf-8"))
    sections: dict[str, type[Pretrained]] = {"vgg16": Pretrained, "xception": Pretrained, "backbone": Backbone}
    found = [gpu.network_of(name, kind.model_validate(values[name])).name for name, kind in sections.items()]
    assert found == ["VGG16", "Xception", "efficientnet_lite0"]


def test_the_mean_of_two_sets_has_the_interval_of_independent_ones() -> None:
    mean, low, high = ablation.mean_difference([Difference(0.1, 0.04, 0.14, 0.01), Difference(0.0, -0.08, 0.03, 0.5)])
    assert (mean, low, high) == pytest.approx((0.05, 0.05 - 0.05, 0.05 + 0.025))


def test_a_useless_change_is_not_called_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that are wrong for other images, but as often; and in the last row seldom wrong."""
    generator = np.random.default_rng(1)
    accuracy = {"Base": 0.6, "Base, useless": 0.6, "Base, good": 0.8}

    def predictions(images: int, share: float) -> pd.DataFrame:
        truth = np.array(["a", "b", "c"])[np.arange(images) % 3]
        right = generator.permutation(images) < share * images
        names = [f"{number}.jpg" for number in range(images)]
        table = pd.DataFrame({"image": names, "video": "", "label": truth, "prediction": "d"})
        return table.assign(prediction=table["prediction"].where(~right, table["label"]))

    def cross_validated(each: ablation.Set, overrides: list[str]) -> Result:
        table = predictions(300, accuracy[overrides[0]])
        return Result("x", "backbone", {}, {}, pd.DataFrame(), [[table]])

    monkeypatch.setattr(ablation, "cross_validated", cross_validated)
    sets = [ablation.Set(name, tmp_path, tmp_path) for name in ("one", "two")]
    table = ablation.measure(sets, {name: [name] for name in accuracy})
    assert list(table["verdict"]) == ["", "", "better"]
