"""Groups of experiments that differ in their seeds: from real refs of a real repository, and by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import seeds
from tests.conftest import ROOT, Clone


def experiment(name: str, score: float, **parameters: Any) -> seeds.Experiment:
    values = {"model": "scratch", "seed": 1, "split.seed": 1, "scratch.dropout": 0.5, "vgg16.l2": 100}
    figures = {"macro_f1": score, "weighted_f1": score, "accuracy": score, "seconds": 10 * score}
    return seeds.Experiment(name, values | parameters, figures)


def test_mean_and_range_by_hand() -> None:
    head, rows = seeds.table([experiment("a", 0.2), experiment("b", 0.6, seed=2), experiment("c", 0.4, seed=3)])
    assert head == ["experiments", "seeds", "macro F1", "weighted F1", "accuracy", "training seconds"]
    assert rows == [
        ["model=scratch", "3", *["0.400 (0.200 to 0.600)"] * 3, "4.0 (2.0 to 6.0)"],
    ]


def test_groups_are_named_by_what_tells_them_apart_and_the_best_is_first() -> None:
    vgg16 = {"model": "vgg16"}
    _, rows = seeds.table(
        [
            experiment("a", 0.2),
            experiment("b", 0.4, **{"split.seed": 2}),
            experiment("c", 0.5, **vgg16),
            experiment("d", 0.7, **vgg16, seed=2),
            experiment("e", 0.1, **vgg16, **{"vgg16.l2": 1}),
        ]
    )
    assert [row[:3] for row in rows] == [
        ["model=vgg16, vgg16.l2=100", "2", "0.600 (0.500 to 0.700)"],
        ["model=scratch", "2", "0.300 (0.200 to 0.400)"],
        ["model=vgg16, vgg16.l2=1", "1", "0.100 (0.100 to 0.100)"],
    ]


def test_the_same_run_twice_counts_once_and_what_another_model_would_do_does_not_matter() -> None:
    _, rows = seeds.table([experiment("a", 0.2), experiment("b", 0.2), experiment("c", 0.4, seed=2, **{"vgg16.l2": 1})])
    assert [row[:2] for row in rows] == [["model=scratch", "2"]]


@pytest.fixture
def repository(tmp_path: Path) -> Clone:
    """A repository with three experiments, as dvc keeps them: commits under refs/exps/BASELINE/NAME."""
    clone = Clone(tmp_path)
    for command in (
        "git init -q",
        "git config user.name Test",
        "git config user.email test@example.org",
        "dvc init -q",
    ):
        clone.run(*command.split())
    clone.run("git", "commit", "-qm", "Start")
    start = clone.run("git", "rev-parse", "HEAD").strip()
    (tmp_path / "metrics").mkdir()
    for seed in (1, 2, 3):
        scores = {"macro_f1": seed / 10, "weighted_f1": 0.5, "accuracy": 0.5}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"model": "scratch", "seed": seed, "split": {"seed": 1}}))
        (tmp_path / "metrics/evaluation.json").write_text(json.dumps(scores))
        (tmp_path / "metrics/training.json").write_text(json.dumps({"seconds": 10.0}))
        clone.run("git", "add", "-A")
        clone.run("git", "commit", "-qm", f"Seed {seed}")
        clone.run("git", "update-ref", f"refs/exps/{start[:2]}/{start[2:]}/seed-{seed}", "HEAD")
        clone.run("git", "reset", "-q", "--hard", start)
        (tmp_path / "metrics").mkdir(exist_ok=True)
    return clone


def ask(clone: Clone, *arguments: str, ok: bool = True) -> str:
    return clone.run(sys.executable, "-m", "stages.seeds", *arguments, ok=ok, PYTHONPATH=str(ROOT))


def test_experiments_of_the_commit_or_by_name(repository: Clone) -> None:
    shown = ask(repository)
    assert shown.splitlines()[-1].split("  ")[0] == "model=scratch"
    assert "0.200 (0.100 to 0.300)" in shown
    assert "0.250 (0.200 to 0.300)" in ask(repository, "seed-2", "seed-3")
    assert ask(repository, "--md").startswith("| experiments")


def test_what_is_missing_is_one_line(repository: Clone) -> None:
    assert ask(repository, "nowhere", ok=False).startswith("error: nowhere is no revision; expected a branch, tag")
    assert ask(repository, "HEAD", ok=False).startswith("error: HEAD has no params.yaml")
    repository.run("git", "commit", "-q", "--allow-empty", "-m", "Next")
    assert ask(repository, ok=False).startswith("error: no experiments of this commit; make some")
