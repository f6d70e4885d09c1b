"""What the benchmarks need: a pipeline of the same shape that does nothing, and a header that says when and where they ran."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import pipeline
from benchmarks.__main__ import PARTS, hardware
from stages.common.runtime.parameters import parse_yaml
from tests.conftest import ROOT, make_clone


def test_every_part_is_a_file_and_the_header_names_the_commit() -> None:
    assert all((ROOT / f"benchmarks/{part}.py").is_file() for part in PARTS)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"commit {head.stdout.strip()}" in hardware()


@pytest.mark.slow
def test_the_empty_pipeline_has_the_same_stages_and_outputs_and_runs(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    empty = pipeline.empty_copy(clone.path, tmp_path / "empty")
    for file in pipeline.FILES:
        ours, theirs = (parse_yaml((path / file).read_text(encoding="utf-8"))["stages"] for path in (clone.path, empty))
        assert {name: stage | {"cmd": ""} for name, stage in ours.items()} == {
            name: stage | {"cmd": ""} for name, stage in theirs.items()
        }
    for expected in ("Running stage 'evaluate'", "Data and pipelines are up to date"):
        shown = subprocess.run(["dvc", "repro"], cwd=empty, capture_output=True, text=True, check=True).stdout
        assert expected in shown
