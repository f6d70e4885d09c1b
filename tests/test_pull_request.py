"""What a pull request is told: the workflows' own scripts on real commits in real clones, against a real server."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.conftest import ROOT, Clone, make_clone

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A repository with results on `main`, and a branch `mobilenetv2` on which the other model was reproduced."""
    clone = make_clone(tmp_path_factory.mktemp("pull-request") / "origin")
    clone.run("git", "branch", "-M", "main")
    for model in ("scratch", "mobilenetv2"):
        if model != "scratch":
            clone.run("git", "checkout", "-qb", model)
            clone.set(model=model)
        clone.run("dvc", "repro")
        clone.run("git", "add", "-A")
        clone.run("git", "commit", "-qm", f"Results of {model}")
    return clone


def fresh(origin: Clone, folder: Path) -> Clone:
    """A clone as a runner has it: without DVC's cache, on its own branch."""
    origin.run("git", "clone", "-q", "--branch", "mobilenetv2", str(origin.path), str(folder / "clone"))
    clone = Clone(folder / "clone")
    clone.run("git", "config", "user.name", "Test")
    clone.run("git", "config", "user.email", "test@example.org")
    return clone


def check(clone: Clone, *, ok: bool) -> str:
    report = clone.path.parent / "report.md"
    shown = clone.run(sys.executable, ".ci/pull_request.py", "origin/main", str(report), ok=ok)
    assert "Traceback" not in shown
    return report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_good_pull_request_is_reproduced_and_compared(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    before = clone.run("git", "for-each-ref")
    report = check(clone, ok=True)
    assert "dvc.lock is up to date" in report
    assert "The committed metrics are those obtained: the same." in report
    assert re.search(r"\| params.yaml *\| model *\| scratch *\| mobilenetv2 *\|", report)
    assert re.search(r"\| metrics/training.json *\| parameters *\|", report)
    assert "A is target-branch (scratch), B is workspace (mobilenetv2)" in report
    assert "95 % interval" in report
    assert "| macro F1 " in report
    assert clone.run("git", "for-each-ref") == before
    # With everything in the cache nothing is computed again.
    again = clone.run("dvc", "repro")
    assert "Running stage" not in again


@pytest.mark.slow
def test_what_was_not_reproduced_is_refused_with_the_stages_that_would_run(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    clone.set(mobilenetv2__l2=7)
    clone.run("git", "commit", "-qam", "Another penalty, not run")
    report = check(clone, ok=False)
    stages = re.findall(r"^- `(.*)`$", report, flags=re.MULTILINE)
    assert stages == [
        "params",
        "models/dvc.yaml:train-mobilenetv2",
        "models/dvc.yaml:infer-mobilenetv2",
        "evaluate",
        "report",
    ]
    assert re.search(r"mobilenetv2.l2 *\| 100 *\| 7 *\|", report)
    assert "No interval and no p-value" in report
    assert not (clone.path / "data/raw/sample").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "old", "new", "stage"),
    [
        ("stages/split.py", '"""data/annotations.csv', '"""Data/annotations.csv', "split"),
        ("metrics/evaluation.json", '"macro_f1": 0', '"macro_f1": 1', "evaluate"),
        ("dvc.lock", "cmd: python -m stages.evaluate", "cmd: python -m stages.evaluated", "evaluate"),
    ],
    ids=["code", "metrics", "command"],
)
def test_changed_code_metrics_and_commands_are_seen(
    origin: Clone, tmp_path: Path, path: str, old: str, new: str, stage: str
) -> None:
    clone = fresh(origin, tmp_path)
    text = (clone.path / path).read_text(encoding="utf-8")
    assert old in text
    (clone.path / path).write_text(text.replace(old, new), encoding="utf-8")
    clone.run("git", "commit", "-qam", "Changed")
    assert f"- `{stage}`" in check(clone, ok=False)


@pytest.mark.slow
def test_a_lock_put_together_from_two_runs_is_seen(origin: Clone, tmp_path: Path) -> None:
    """As a merge makes it: each entry is some run's, and together they are nobody's."""
    clone = fresh(origin, tmp_path)
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text(encoding="utf-8"))
    (out,) = [out for out in lock["stages"]["annotate"]["outs"] if out["path"] == "data/annotations.csv"]
    out["md5"] = "0" * 32
    (clone.path / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    clone.run("git", "commit", "-qam", "Merged by hand")
    assert "- `split`" in check(clone, ok=False)


@pytest.mark.slow
def test_metrics_that_are_not_obtained_are_refused(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    path = clone.path / "metrics/evaluation.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(scores | {"accuracy": scores["accuracy"] + 0.3}), encoding="utf-8")
    clone.run("git", "commit", "-qam", "Better than it is")
    module = pull_request()
    before = Path.cwd()
    os.chdir(clone.path)
    try:
        with pytest.raises(module.Failed, match=r"not those obtained\*\* \(tolerance"):
            module.check_metrics()
    finally:
        os.chdir(before)


def pull_request() -> Any:
    specification = importlib.util.spec_from_file_location("pull_request", ROOT / ".ci/pull_request.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class GitHub:
    """The part of GitHub's API that the comment needs, on this machine."""

    def __init__(self) -> None:
        self.pulls: list[dict[str, Any]] = []
        self.comments: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                outer.asked.append((self.command, self.path))
                assert self.headers["Authorization"] == "Bearer secret"
                content = json.dumps(outer.handle(self.command, self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handle(self, method: str, url: str, body: Any) -> Any:
        parts = urlsplit(url)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        if parts.path == "/repos/owner/name/pulls":
            return [pull for pull in self.pulls if pull["head"]["label"] == query["head"]]
        if method == "GET":
            start = (int(query["page"]) - 1) * int(query["per_page"])
            return self.comments[start : start + int(query["per_page"])]
        if method == "POST":
            assert parts.path == "/repos/owner/name/issues/7/comments"
            self.add("github-actions[bot]", body["body"])
            return {}
        number = int(parts.path.removeprefix("/repos/owner/name/issues/comments/"))
        (comment,) = [comment for comment in self.comments if comment["id"] == number]
        comment["body"] = body["body"]
        return {}

    def add(self, user: str, body: str) -> None:
        self.comments.append({"id": len(self.comments) + 100, "user": {"login": user}, "body": body})

    def comment(self, report: Path, *, ok: bool = True, **environment: str) -> str:
        ended = subprocess.run(
            [sys.executable, str(ROOT / ".ci/comment.py"), str(report)],
            env={
                "GITHUB_API_URL": f"http://127.0.0.1:{self.server.server_port}",
                "GITHUB_REPOSITORY": "owner/name",
                "GITHUB_TOKEN": "secret",
                "HEAD": "someone:branch",
                "HEAD_SHA": "abc",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode == 0) == ok, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "secret" not in ended.stdout + ended.stderr
        return ended.stdout + ended.stderr


@pytest.fixture
def github() -> Iterator[GitHub]:
    server = GitHub()
    server.pulls = [
        {"number": 6, "head": {"label": "someone:branch", "sha": "older"}},
        {"number": 7, "head": {"label": "someone:branch", "sha": "abc"}},
        {"number": 8, "head": {"label": "other:branch", "sha": "abc"}},
    ]
    yield server
    server.server.shutdown()


def test_one_comment_is_written_and_then_updated(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    for number in range(150):
        github.add("someone", f"remark {number}")
    github.add("someone", "<!-- results of this pull request -->\nnot the bot's")
    report.write_text("first", encoding="utf-8")
    assert "pull request 7: comment written" in github.comment(report)
    report.write_text("second ä", encoding="utf-8")
    assert "pull request 7: comment updated" in github.comment(report)
    own = [comment["body"] for comment in github.comments if comment["user"]["login"] == "github-actions[bot]"]
    assert own == ["<!-- results of this pull request -->\nsecond ä"]
    assert github.comments[150]["body"].endswith("not the bot's")


def test_a_long_report_is_cut_and_a_commit_that_is_no_longer_the_last_says_nothing(
    github: GitHub, tmp_path: Path
) -> None:
    report = tmp_path / "report.md"
    report.write_text("x" * 100_000, encoding="utf-8")
    github.comment(report)
    assert len(github.comments[-1]["body"]) < 65_536
    assert "the rest is in the run's summary" in github.comments[-1]["body"]
    assert "nothing to say" in github.comment(report, HEAD_SHA="gone")
    assert len(github.comments) == 1


def test_a_server_that_is_not_there_is_one_line(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("x", encoding="utf-8")
    assert "error: " in github.comment(report, ok=False, GITHUB_API_URL="http://127.0.0.1:9")
    assert "expected https" in github.comment(report, ok=False, GITHUB_API_URL="ftp://example.org")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_hold_no_more_rights_than_they_need(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "secrets." not in text
    assert "pull_request_target" not in text
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        rights = job.get("permissions", {})
        writes = {name for name, right in rights.items() if right == "write"}
        assert writes == ({"pull-requests"} if path.name == "comment.yml" else set())
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
                assert not step["uses"].startswith("actions/checkout") or step["with"]["persist-credentials"] is False
            # What a stranger chose (a branch's name) must reach the shell as a variable, never as code.
            assert "${{" not in step.get("run", "")
    assert all(re.search(r"@[0-9a-f]{40} # v\d", line) for line in text.splitlines() if "uses:" in line)


def test_the_one_that_may_write_runs_nothing_of_the_pull_request() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/comment.yml").read_text(encoding="utf-8"))
    assert workflow[True] == {"workflow_run": {"workflows": ["results"], "types": ["completed"]}}
    (job,) = workflow["jobs"].values()
    (checkout,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout")]
    assert "ref" not in checkout["with"]
    results = yaml.safe_load((ROOT / ".github/workflows/results.yml").read_text(encoding="utf-8"))
    assert results["name"] == "results"


def test_actionlint_finds_nothing() -> None:
    if not (actionlint := shutil.which("actionlint")):
        pytest.skip("needs actionlint")
    ended = subprocess.run([actionlint, *WORKFLOWS], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
