"""Groups of experiments that differ in their seeds: by hand, and from real refs of a real repository."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import seeds
from stages.common.comparison.experiments import Experiment
from stages.common.runtime import paths
from tests.conftest import Clone


def experiment(name: str, score: float, **parameters: Any) -> Experiment:
    values = {"model": "scratch", "seed": 1, "split.seed": 1, "scratch.dropout": 0.5, "vgg16.l2": 100}
    figures = {"macro_f1": score, "weighted_f1": score, "accuracy": score, "seconds": 10 * score}
    return Experiment(name, values | parameters, figures)


def test_mean_and_range_by_hand() -> None:
    head, rows = seeds.table([experiment("a", 0.2), experiment("b", 0.6, seed=2), experiment("c", 0.4, seed=3)])
    assert head == ["experiments", "seeds", "macro F1", "weighted F1", "accuracy", "training seconds"]
    assert rows == [
        ["model=scratch", "3", *["0.400 (0.200 to 0.600)"] * 3, "4.0 (2.0 to 6.0)"],
    ]


def test_groups_are_named_by_what_differs_and_the_best_is_first() -> None:
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


def test_the_same_run_counts_once_and_sections_of_other_models_do_not_matter() -> None:
    _, rows = seeds.table([experiment("a", 0.2), experiment("b", 0.2), experiment("c", 0.4, seed=2, **{"vgg16.l2": 1})])
    assert [row[:2] for row in rows] == [["model=scratch", "2"]]


def test_learning_without_labels_matters_to_its_model_alone() -> None:
    for model, groups in (("scratch", 1), ("selfsupervised", 2)):
        runs = [
            experiment(str(epochs), 0.2, model=model, seed=epochs, **{"pretrain.epochs": epochs}) for epochs in (1, 2)
        ]
        assert len(seeds.table(runs)[1]) == groups


class Experiments(Clone):
    """A repository with experiments, as dvc keeps them: commits under refs/exps/BASELINE/NAME."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for command in (
            "git init -q",
            "git config user.name Test",
            "git config user.email test@example.org",
        ):
            self.run(*command.split())
        self.dvc("init", "-q")
        self.run("git", "commit", "-qm", "Start")
        self.start = self.run("git", "rev-parse", "HEAD").strip()

    def add(self, name: str, seed: int, rate: str = "1e-05", **files: str) -> None:
        """Add an experiment.

        Args:
            name: of the experiment.
            seed: a tenth of it is the macro F1.
            rate: how params.yaml spells scratch.learning_rate.
            files: md5 of dependencies and outputs; by default `LOCKED`.
        """
        parameters = yaml.safe_dump({"model": "scratch", "data": "data/raw/photos", "seed": seed, "split": {"seed": 1}})
        scores = {"macro_f1": seed / 10, "weighted_f1": 0.5, "accuracy": 0.5}
        written = {
            paths.PARAMETERS: f"{parameters}scratch:\n  learning_rate: {rate}\n",
            paths.EVALUATION: json.dumps(scores),
            paths.TRAINING: json.dumps({"seconds": 10.0}),
            **locks(LOCKED | files),
        }
        for path, text in written.items():
            (self.path / path).parent.mkdir(exist_ok=True)
            (self.path / path).write_text(text)
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", name)
        self.run("git", "update-ref", f"refs/exps/{self.start[:2]}/{self.start[2:]}/{name}", "HEAD")
        self.run("git", "tag", f"tag-{name}")
        self.run("git", "reset", "-q", "--hard", self.start)


LOCKED = {
    "raw": "1" * 32 + ".dir",
    "annotate": "2" * 32,
    "annotations": "3" * 32,
    "train": "4" * 32,
    "vgg16": "5" * 32,
    "sample": "6" * 32,
    "timing": "7" * 32,
    "timings": "7" * 32,
}


def locks(md5: dict[str, str]) -> dict[Path, str]:
    """The dvc.lock files of an experiment with the model scratch, in which runs of vgg16 and of the sample have left entries."""

    def stage(deps: dict[str, str], outs: dict[str, str]) -> dict[str, Any]:
        return {
            "cmd": "true",
            "deps": [{"path": path, "md5": md5[key]} for path, key in deps.items()],
            "outs": [{"path": path, "md5": md5[key]} for path, key in outs.items()],
        }

    annotations = {"data/annotations.csv": "annotations"}
    stages: list[dict[str, Any]] = [
        {"annotate": stage({"data/raw/photos": "raw", "stages/annotate.py": "annotate"}, annotations)},
        {"sample": stage({"stages/sample.py": "sample"}, {})},
        {
            "train-scratch": stage(
                {**annotations, "stages/train.py": "train"}, {"models/scratch/timing/train.json": "timing"}
            ),
            "report": stage({"models/scratch/timing": "timings"}, {}),
            "train-vgg16": stage({**annotations, "stages/common/networks/heads.py": "vgg16"}, {}),
        },
    ]
    return {
        path: yaml.safe_dump({"schema": "2.0", "stages": each}) for path, each in zip(paths.LOCKS, stages, strict=True)
    }


@pytest.fixture
def repository(tmp_path: Path) -> Experiments:
    """Three experiments whose learning rate is the same one in three spellings, of which dvc writes the first."""
    repository = Experiments(tmp_path)
    for seed, rate in ((1, "1e-05"), (2, "0.00001"), (3, "1.0e-5")):
        # Each takes its own time.
        repository.add(f"seed-{seed}", seed, rate, timing=str(seed) * 32, timings=str(seed + 3) * 32)
    return repository


def ask(clone: Clone, *arguments: str, ok: bool = True) -> str:
    return clone.call(seeds.main, *arguments, ok=ok)


def test_experiments_of_the_commit_or_by_name(repository: Experiments) -> None:
    shown = ask(repository)
    assert len(shown.splitlines()) == 3
    assert shown.splitlines()[-1].split("  ")[0] == "model=scratch"
    assert "0.200 (0.100 to 0.300)" in shown
    assert "0.250 (0.200 to 0.300)" in ask(repository, "seed-2", "seed-3")
    assert ask(repository, "--md").startswith("| experiments")


def test_spellings_of_one_number_are_one_group(repository: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.path)
    experiments = seeds.read_experiments(["seed-1", "seed-2", "seed-3"])
    assert [each.parameters["scratch.learning_rate"] for each in experiments] == [1e-05] * 3
    _, rows = seeds.table(experiments)
    assert [row[:3] for row in rows] == [["model=scratch", "3", "0.200 (0.100 to 0.300)"]]


def test_another_number_is_another_group(repository: Experiments) -> None:
    repository.add("faster", 4, "2e-5")
    shown = ask(repository, "seed-1", "faster")
    assert [line.split()[:2] for line in shown.splitlines()[2:]] == [
        ["scratch.learning_rate=2e-05", "1"],
        ["scratch.learning_rate=1e-05", "1"],
    ]


@pytest.mark.parametrize(
    ("key", "path"), [("raw", "data/raw/photos"), ("annotate", "stages/annotate.py"), ("train", "stages/train.py")]
)
def test_other_code_and_other_data_are_another_group(repository: Experiments, key: str, path: str) -> None:
    repository.add("changed", 4, **{key: "abcdef0123456789" * 2})
    shown = ask(repository, "seed-1", "seed-2", "changed")
    assert [line.split()[:2] for line in shown.splitlines()[2:]] == [
        [f"{path}=abcdef0", "1"],
        [f"{path}={LOCKED[key][:7]}", "2"],
    ]


@pytest.mark.parametrize("key", ["annotations", "vgg16", "sample"])
def test_outputs_of_stages_and_code_of_other_models_and_data_make_no_group(repository: Experiments, key: str) -> None:
    repository.add("changed", 4, **{key: "abcdef0123456789" * 2})
    shown = ask(repository, "seed-1", "seed-2", "changed")
    assert [line.split()[:2] for line in shown.splitlines()[2:]] == [["model=scratch", "3"]]


def test_photographs_of_ones_own_need_no_lock_of_the_data_sets(repository: Experiments) -> None:
    repository.run("git", "checkout", "-q", f"refs/exps/{repository.start[:2]}/{repository.start[2:]}/seed-3")
    repository.run("git", "rm", "-q", str(paths.DATA_LOCK))
    repository.run("git", "commit", "-qm", "Without it")
    shown = ask(repository, "seed-1", "seed-2", "HEAD")
    assert shown.splitlines()[-1].split()[:2] == ["model=scratch", "3"]


def test_an_experiment_that_does_not_count_is_named(repository: Experiments) -> None:
    repository.add("again", 2)
    shown = ask(repository, "seed-1", "seed-2", "again")
    assert shown.splitlines()[-1] == "skipped: again: the same seeds, parameters, code and data as seed-2"
    assert shown.splitlines()[2].split()[:2] == ["model=scratch", "2"]
    assert "skipped" not in ask(repository, "seed-1", "seed-2")


@pytest.mark.parametrize(
    ("name", "text"),
    [("params.yaml", "seed: *a"), ("params.yaml", "- 1"), ("metrics/evaluation.json", "{}"), ("dvc.lock", "[]")],
)
def test_files_of_another_project_are_one_line(repository: Experiments, name: str, text: str) -> None:
    repository.run("git", "checkout", "-q", "tag-seed-1")
    (repository.path / name).write_text(text)
    repository.run("git", "commit", "-qam", "Other")
    repository.run("git", "tag", "other")
    shown = ask(repository, "other", ok=False)
    what = "metrics" if name.startswith("metrics") else "parameters or locks"
    assert shown.startswith(f"error: other: its {what} are not as dvc repro writes them")
    assert len(shown.splitlines()) == 1


def test_what_is_missing_is_one_line(repository: Experiments) -> None:
    assert ask(repository, "nowhere", ok=False).startswith("error: nowhere is not a revision; expected a branch, tag")
    assert ask(repository, "HEAD", ok=False).startswith("error: HEAD has no params.yaml")
    repository.run("git", "commit", "-q", "--allow-empty", "-m", "Next")
    assert ask(repository, ok=False).startswith("error: no experiments of this commit; make some")
