"""Comparing revisions: in a real repository of git and DVC, with cache, remote and neither."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from commands import compare
from stages.common.comparison.results import read_result
from stages.common.evaluation import bootstrap
from stages.common.evaluation.predictions import occurring_labels
from stages.common.evaluation.summary import label_scores, summary
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from tests.conftest import ROOT, Clone

LABELS = ["biking", "running", "sports"]


def predictions(accuracy: float, images: int = 60, labels: list[str] = LABELS, first: int = 0) -> pd.DataFrame:
    """So many images, three a video, of which the fraction `accuracy` is correct."""
    names = [f"{number:03d}.jpg" for number in range(first, first + images)]
    truth = [labels[number // 3 % len(labels)] for number in range(first, first + images)]
    # 7 shares no factor with 60: correct and wrong images are spread over videos and labels
    correct = {number * 7 % images for number in range(round(accuracy * images))}
    wrong = {label: labels[(place + 1) % len(labels)] for place, label in enumerate(labels)}
    return pd.DataFrame(
        {
            "image": names,
            "video": [str(number // 3) for number in range(first, first + images)],
            "label": truth,
            "prediction": [label if number in correct else wrong[label] for number, label in enumerate(truth)],
            "probability": [0.5 + number / 1000 for number in range(images)],
        }
    )


class Repository(Clone):
    """A repository with one stage whose outputs have the pipeline's paths and formats: committed without running anything."""

    def commit(self, name: str, table: pd.DataFrame, model: str = "scratch", seconds: float = 10.0) -> None:
        path = self.path / paths.predictions(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link into the cache
        table.to_csv(path, index=False)
        scores = {"model": model, **summary(table)}
        training = {"model": model, "seconds": seconds, "parameters": 1000}
        for folder in ("metrics", "plots"):
            (self.path / folder).mkdir(exist_ok=True)
        (self.path / paths.EVALUATION).write_text(json.dumps(scores))
        (self.path / paths.TRAINING).write_text(json.dumps(training))
        labels = label_scores(table, occurring_labels(table))
        labels.to_csv(self.path / paths.LABEL_SCORES, index=False)
        (self.path / "dvc.yaml").write_text(f"stages: {{infer: {{cmd: 'false', outs: [{paths.predictions(model)}]}}}}")
        self.dvc("commit", "--force", "--quiet")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", name)
        self.run("git", "tag", name)

    def compare(self, *arguments: str, ok: bool = True) -> str:
        return self.call(compare.main, *arguments, ok=ok)


@pytest.fixture(scope="module")
def two_commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the commits `old` and `new`."""
    repository = Repository(tmp_path_factory.mktemp("two-commits"))
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "Test"],
        ["git", "config", "user.email", "test@example.org"],
    ):
        repository.run(*command)
    repository.dvc("init", "-q")
    repository.commit("old", predictions(0.5))
    repository.commit("new", predictions(0.9), model="vgg16", seconds=25.5)
    return repository.path


@pytest.fixture
def repository(two_commits: Path, tmp_path: Path) -> Repository:
    shutil.copytree(two_commits, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Repository(tmp_path)


def test_two_revisions_with_everything_that_changed(repository: Repository) -> None:
    shown = repository.compare("old", "new")
    lines = {line.split("  ")[0].strip(): line for line in shown.splitlines() if line.strip()}
    assert "A is old (scratch), B is new (vgg16)." in shown
    assert "Both on the same 60 test images of 20 videos." in shown
    assert lines["accuracy"].split()[1:4] == ["0.500", "0.900", "+0.400"]
    assert lines["training seconds"].split()[2:] == ["10.0", "25.5", "+15.5"]
    assert lines["parameters"].split()[1:] == ["1,000", "1,000", "+0"]
    found = bootstrap.differences(predictions(0.5), predictions(0.9))["macro_f1"]
    assert f"{found.low:+.3f} to {found.high:+.3f}" in lines["macro F1"]
    assert "Macro F1 is better by more than the choice of test videos explains" in shown
    assert "The effect of another seed of A and B is not included: compare groups of seeds, A1,A2,A3 B1,B2,B3." in shown
    assert "Labels with the largest gain" in shown
    assert "Labels with the largest loss" not in shown
    assert "30 correct in both, 0 only in A, 24 only in B, 6 in neither" in shown
    assert "20 of the 24 images on which they disagree" in shown
    assert "Traceback" not in shown
    every = repository.compare("old", "new", "--all")
    assert "The 24 images on which they disagree" in every
    assert sum(".jpg" in line for line in every.splitlines()) == 24
    back = repository.compare("new", "old")
    assert "Macro F1 is worse by more than the choice of test videos explains" in back
    assert "Labels with the largest loss" in back


def test_head_and_the_workspace_are_the_default_and_nothing_is_touched(repository: Repository) -> None:
    shown = repository.compare()
    assert "A is HEAD (vgg16), B is workspace (vgg16)." in shown
    assert "Both predict the same label for every image." in shown
    before = state(repository.path)
    repository.compare("old", "HEAD~1")
    assert state(repository.path) == before
    repository.run("git", "checkout", "-q", "old")
    (repository.path / "models/vgg16/predictions.csv").unlink()
    assert "B is workspace (scratch)" in repository.compare("new")


def state(folder: Path) -> dict[str, bytes]:
    """The content of the workspace, except git's and DVC's own folders."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(folder).parts)
    }


def test_a_difference_that_chance_may_explain_is_said_to_be_one(repository: Repository) -> None:
    repository.commit("newer", predictions(0.92), model="vgg16")
    shown = repository.compare("new", "newer")
    assert "which the choice of test videos may explain" in shown
    assert "p < 0.001" not in shown


def test_predictions_come_from_a_remote_when_the_cache_is_gone(repository: Repository, tmp_path: Path) -> None:
    whole = repository.compare("old", "new")
    remote = tmp_path.parent / f"{tmp_path.name}-remote"
    repository.dvc("remote", "add", "-d", "here", str(remote))
    for name in ("old", "new"):
        repository.run("git", "checkout", "-q", name)
        repository.run("dvc", "push")
    shutil.rmtree(repository.path / ".dvc/cache")
    assert repository.compare("old", "new") == whole
    for folder in (repository.path / ".dvc/cache", remote):
        shutil.rmtree(folder)
    without = repository.compare("old", "new")
    for name, model in (("old", "scratch"), ("new", "vgg16")):
        assert f"the predictions of {name} are missing: models/{model}/predictions.csv" in without
    assert without.count("neither in DVC's cache nor in the remote") == 2
    assert "p" not in without.splitlines()[6].split()
    assert "+0.400" in without
    assert "Labels with the largest gain" in without
    assert "Traceback" not in without
    assert "choice of test videos" not in without
    repository.dvc("remote", "remove", "here")
    assert "no remote has it (" in repository.compare("old", "new")


def test_different_test_parts_are_named_and_not_tested(repository: Repository) -> None:
    repository.commit("other", predictions(0.8, first=30), model="vgg16")
    shown = repository.compare("new", "other")
    assert "the test images differ (60 images in A, 60 in B, 30 of them the same with the same label)" in shown
    assert "choice of test videos" not in shown
    assert "95 %" not in shown
    assert "Of 30 images in both" in shown
    repository.commit("smaller", predictions(0.9, images=30), model="vgg16")
    assert "60 images in A, 30 in B, 30 of them" in repository.compare("new", "smaller")


def test_other_labels_are_named(repository: Repository) -> None:
    repository.commit("two", predictions(0.9, labels=["biking", "running"]))
    shown = repository.compare("new", "two")
    assert "Labels only in A: sports." in shown
    assert "Labels only in B" not in shown
    repository.commit("others", predictions(0.5, labels=["x", "y"]))
    assert "Labels only in B: x, y." in repository.compare("new", "others")


def test_a_label_that_is_predicted_but_never_occurs(repository: Repository) -> None:
    table = predictions(0.9)
    table.loc[table["label"] == "sports", "prediction"] = "never there"
    repository.commit("odd", table)
    shown = repository.compare("new", "odd")
    assert "Both on the same 60" in shown
    assert "Labels only in B: never there." in shown
    lost = next(line for line in shown.splitlines() if line.startswith("sports"))
    assert lost.split()[3] == "0.000"


def test_from_a_folder_below_and_names_with_control_characters(repository: Repository) -> None:
    table = predictions(0.9, labels=["two\x1b[31m", "b&commat;c", "d\u2028e"])
    repository.commit("odd", table)
    for arguments in ([], ["--md"]):
        shown = repository.run(
            "bash",
            "-c",
            f"cd metrics && python -m commands.compare new odd {' '.join(arguments)}",
            PYTHONPATH=str(ROOT),
        )
        assert not {"\x1b", "\u2028"} & set(shown)
    assert "&commat;" not in shown
    assert "B is odd (scratch)" in shown


def test_an_experiments_name_is_a_revision(repository: Repository) -> None:
    repository.commit("third", predictions(0.7))
    head = repository.run("git", "rev-parse", "HEAD").strip()
    base = repository.run("git", "rev-parse", "HEAD~1").strip()
    repository.run("git", "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/brave-name", head)
    repository.run("git", "reset", "-q", "--hard", "HEAD~1")
    assert "B is brave-name (scratch)" in repository.compare("HEAD", "brave-name")


def test_markdown_is_a_table_in_which_names_are_data(repository: Repository) -> None:
    table = predictions(0.5, labels=["a|b", "<img src=x>", "@everyone [x](http://example.org)"])
    repository.commit("hostile", table)
    better = predictions(0.9, labels=["a|b", "<img src=x>", "@everyone [x](http://example.org)"])
    repository.commit("worse", better)
    shown = repository.compare("hostile", "worse", "--md")
    assert "| macro F1 " in shown
    assert "<details><summary>" in shown
    assert "a\\|b" in shown
    assert "<img" not in shown.replace("\\<img", "")
    assert "@everyone" not in shown
    assert "](http" not in shown.replace("\\]", "")
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert all(len(row.replace("\\|", "").split("|")) in (6, 7, 8) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "error: nowhere is not a revision; expected a branch, tag, commit or experiment"),
        (["new", "HEAD~9"], "error: HEAD~9 is not a revision"),
        ([""], "error: an empty name is not a revision"),
        (["new:metrics/evaluation.json"], "error: new:metrics/evaluation.json is not a revision"),
        (["first"], "error: first has no metrics/evaluation.json"),
        (["broken"], "error: broken: its metrics or plots/labels.csv are not as dvc repro writes them"),
        (["above"], "error: above: its metrics or plots/labels.csv are not as dvc repro writes them"),
        (["nan"], "error: nan: its metrics or plots/labels.csv are not as dvc repro writes them"),
        (["few"], "error: few: its metrics or plots/labels.csv are not as dvc repro writes them"),
        (["mixed"], "error: mixed: metrics/evaluation.json does not belong to models/vgg16/predictions.csv"),
    ],
)
def test_what_can_not_be_compared_is_one_line(repository: Repository, arguments: list[str], line: str) -> None:
    tree = repository.run("git", "hash-object", "-t", "tree", "/dev/null").strip()
    empty = repository.run("git", "commit-tree", "-m", "empty", tree).strip()
    repository.run("git", "tag", "first", empty)
    scores = repository.path / "metrics/evaluation.json"
    for name, text in (
        ("broken", "{}"),
        ("above", scores.read_text().replace('"accuracy": 0.9', '"accuracy": 90')),
        ("nan", scores.read_text().replace('"accuracy": 0.9', '"accuracy": NaN')),
        ("few", scores.read_text().replace('"accuracy": 0.9', '"other": 0.9')),
        ("mixed", scores.read_text().replace('"accuracy": 0.9', '"accuracy": 0.8')),
    ):
        scores.write_text(text)
        repository.run("git", "commit", "-qam", name)
        repository.run("git", "tag", name)
    shown = repository.compare(*arguments, ok=False)
    assert line in shown
    assert len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["compare", "seeds"])
def test_outside_a_repository_is_one_line(tmp_path: Path, command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"commands.{command}"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no DVC repository here")
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("table", ["image,video\n1,2\n", "image,video,label,prediction,probability\n", ""])
def test_predictions_that_are_not_a_table_with_rows_are_one_error(table: str) -> None:
    files = {
        paths.EVALUATION: json.dumps({"model": "scratch", **summary(predictions(0.5))}),
        paths.TRAINING: "{}",
        paths.LABEL_SCORES: "label,f1,support\na,1,1\n",
        paths.predictions("scratch"): table,
    }
    with pytest.raises(UserError, match="predictions.csv is not as dvc repro writes it"):
        read_result("there", files.__getitem__)


PIPELINE = """
stages:
  train-scratch: {cmd: 'false', wdir: .., outs: [models/scratch/model.keras]}
  cross-validate:
    cmd: 'false'
    wdir: ..
    deps: [models/scratch/model.keras]
    params: [model, split, cross_validation]
    outs: [models/scratch/out_of_fold.csv]
"""


def commit_folds(
    repository: Repository, name: str, table: pd.DataFrame, seed: int = 1, l2: int = 1, folds: int = 5
) -> None:
    """A revision that is cross-validated: a quarter of the images of `table` are its test part."""
    folder = repository.path / "models/scratch"
    for file, text in (("model.keras", f"{name}"), ("out_of_fold.csv", table.to_csv(index=False))):
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_text(text)
    (repository.path / "models/dvc.yaml").write_text(PIPELINE)
    parameters = {
        "model": "scratch",
        "data": "data/raw/sample",
        "seed": seed,
        "split": {"seed": 1},
        "scratch": {"l2": l2},
        "cross_validation": {"folds": folds},
    }
    (repository.path / paths.PARAMETERS).write_text(yaml.safe_dump(parameters))
    (repository.path / "metrics").mkdir(exist_ok=True)
    (repository.path / paths.CROSS_VALIDATION).write_text(json.dumps({"model": "scratch", **summary(table)}))
    # Not the columns of folds: those of the test part have none.
    repository.commit(name, table.iloc[: len(table) // 4, 2:].reset_index(drop=True))


def folds_of(accuracy: float, images: int = 240) -> pd.DataFrame:
    table = predictions(accuracy, images)
    table.insert(0, "repeat", 1)
    table.insert(1, "fold", [number // 3 % 5 + 1 for number in range(images)])
    table["probability"] = 0.5
    return table


def interval(shown: str) -> tuple[float, float]:
    (row,) = (line for line in shown.splitlines() if line.startswith("macro F1"))
    low, high = re.findall(r"([+-][\d.]+) to ([+-][\d.]+)", row)[0]
    return float(low), float(high)


def test_out_of_fold_predictions_are_compared_if_both_have_them(repository: Repository) -> None:
    commit_folds(repository, "a", folds_of(0.5))
    commit_folds(repository, "b", folds_of(0.7))
    shown = repository.compare("a", "b")
    assert "Both on the same 240 labelled images of 80 videos, predicted out of fold." in shown
    assert "by more than the choice of the videos explains" in shown
    of_test_part = repository.compare("old", "new")
    narrow, wide = interval(shown), interval(of_test_part)
    assert narrow[1] - narrow[0] < 0.75 * (wide[1] - wide[0])
    commit_folds(repository, "other-folds", folds_of(0.7), folds=3)
    shown = repository.compare("a", "HEAD")
    assert "60 test images" in shown
    assert "Not by out-of-fold predictions: A and B differ in cross_validation.folds." in shown
    shown = repository.compare("old", "b")
    assert "60 test images" in shown
    assert "Not by out-of-fold predictions: old: params.yaml: no stage of that revision writes it." in shown


def test_out_of_fold_predictions_of_an_older_model_are_not_used(repository: Repository) -> None:
    commit_folds(repository, "a", folds_of(0.5))
    commit_folds(repository, "b", folds_of(0.7))
    (repository.path / "models/scratch/model.keras").unlink()
    (repository.path / "models/scratch/model.keras").write_text("trained again")
    repository.run("dvc", "commit", "--force", "--quiet", "models/dvc.yaml:train-scratch")
    repository.run("git", "commit", "-qam", "Trained again")
    shown = repository.compare("a", "HEAD")
    assert "predicted out of fold" not in shown
    assert "HEAD: the stage cross-validate has not run since the model was trained" in shown


def test_groups_of_seeds_are_compared_by_their_means(repository: Repository) -> None:
    scores = {"a": (0.5, 0.6), "b": (0.7, 0.8)}
    for side, values in scores.items():
        for seed, accuracy in enumerate(values, start=1):
            commit_folds(repository, f"{side}{seed}", folds_of(accuracy), seed)
    shown = repository.compare("a1,a2", "b1,b2")
    assert "A is the mean of 2 seeds: a1, a2 (scratch), B is the mean of 2 seeds: b1, b2 (scratch)." in shown
    lines = {line.split("  ")[0].strip(): line.split() for line in shown.splitlines() if line.strip()}
    assert lines["accuracy"][1:4] == ["0.550", "0.750", "+0.200"]
    assert "the choice of the videos and of the seeds" in shown
    assert "The effect of another seed" not in shown
    commit_folds(repository, "c", folds_of(0.7), seed=3, l2=2)
    shown = repository.compare("a1,c", "b1", ok=False)
    assert shown == "error: a1 and c differ in scratch.l2 (1 and 2); expected a group that differs in seed alone\n"
    assert "have the same seed; expected a group" in repository.compare("a1,b1", "b1", ok=False)


def test_scores_of_the_commit_before_are_refused(repository: Repository) -> None:
    """As an experiment that ran cross-validate alone has them: model and parameters are new, the test part's scores are not."""
    commit_folds(repository, "a", folds_of(0.5))
    files = {"models/scratch/model.keras": "1" * 32, "models/scratch/predictions.csv": "2" * 32}
    stages = {
        "train-scratch": {"outs": ["models/scratch/model.keras"]},
        "infer-scratch": {"deps": ["models/scratch/model.keras"], "outs": ["models/scratch/predictions.csv"]},
        "evaluate": {"deps": ["models/scratch/predictions.csv"]},
    }

    def lock(**changes: str) -> None:
        entries: dict[str, Any] = {
            name: {"cmd": "false"}
            | {kind: [{"path": path, "md5": files[path]} for path in paths] for kind, paths in stage.items()}
            for name, stage in stages.items()
        }
        entries["evaluate"]["params"] = {"params.yaml": {"model": changes.get("evaluated", "scratch")}}
        entries["train-scratch"]["outs"][0]["md5"] = changes.get("trained", "1") * 32
        (repository.path / "models/dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))
        repository.run("git", "commit", "-qam", "Locked")

    lock()
    assert "A is HEAD (scratch), B is HEAD (scratch)." in repository.compare("HEAD", "HEAD")
    for changes in ({"trained": "3"}, {"evaluated": "backbone"}):
        lock(**changes)
        shown = repository.compare("HEAD", "HEAD", ok=False)
        assert shown.startswith("error: HEAD: its scores on the test part are of another model than its parameters say")
        assert len(shown.splitlines()) == 1
