"""The report on a pull request: the scripts of the workflows, on real commits in real clones, with a real server."""

import hashlib
import json
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

from tests.conftest import ROOT, Clone, Finished

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def origin(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A repository with results on `main`, and with those of another model on the branch `backbone`."""
    clone = finished.copy(tmp_path_factory.mktemp("pull-request") / "origin")
    clone.run("git", "branch", "-M", "main")
    clone.run("git", "checkout", "-qb", "backbone")
    clone.set(model="backbone", data="./data/raw/sample")  # the sample's path, in another spelling
    clone.run("dvc", "repro")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "Results of backbone")
    return clone


def fresh(origin: Clone, folder: Path, *, cache: bool = True) -> Clone:
    """A clone on the branch `backbone`, as a runner has it; with `cache` DVC need not compute again what `origin` has."""
    origin.run("git", "clone", "-q", "--branch", "backbone", str(origin.path), str(folder / "clone"))
    clone = Clone(folder / "clone")
    clone.run("git", "config", "user.name", "Test")
    clone.run("git", "config", "user.email", "test@example.org")
    if cache:
        clone.dvc("cache", "dir", "--local", str(origin.path / ".dvc/cache"))
    return clone


def check(clone: Clone, *, ok: bool) -> str:
    report = clone.path.parent / "report.md"
    shown = clone.run(sys.executable, ".ci/pull_request.py", "origin/main", str(report), ok=ok)
    assert "Traceback" not in shown
    return report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_good_pull_request_is_reproduced_and_compared(origin: Clone, finished: Finished, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path, cache=False)
    # The target's results need not be computed once more, those of the branch are.
    shutil.copytree(finished.path / ".dvc/cache", clone.path / ".dvc/cache")
    before = clone.run("git", "for-each-ref")
    report = check(clone, ok=True)
    assert "dvc.lock is up to date" in report
    assert "data: `./data/raw/sample`" in report
    assert "The committed results of backbone are reproduced exactly." in report
    assert re.search(r"\| params.yaml *\| model *\| scratch *\| backbone *\|", report)
    assert re.search(r"\| metrics/training.json *\| parameters *\|", report)
    assert re.search(r"\| Metric *\| target branch *\| HEAD *\| Change *\|", report)
    assert "A is the target branch (scratch), B is workspace (backbone)" in report
    assert "95 % interval" in report
    assert "| macro F1 " in report
    assert clone.run("git", "for-each-ref") == before
    # With everything in the cache nothing is computed again.
    again = clone.run("dvc", "repro")
    assert "Running stage" not in again


@pytest.mark.slow
def test_data_of_ones_own_are_not_reproduced_and_not_refused(origin: Clone, tmp_path: Path, drawn: Path) -> None:
    clone = fresh(origin, tmp_path)
    photographs = shutil.copytree(drawn, tmp_path / "photographs")
    # As if `dvc repro` had made what is there of these photographs.
    clone.run("dvc", "checkout", "--allow-missing")
    clone.set(data=str(photographs))
    clone.run("dvc", "commit", "--force", "--with-deps", "evaluate")
    clone.run("dvc", "commit", "--force", "--with-deps", "report")
    clone.run("git", "commit", "-qam", "Results of other photographs")
    shutil.rmtree(photographs)
    report = check(clone, ok=True)
    assert "dvc.lock is up to date" in report
    assert "Not reproduced" in report


@pytest.mark.slow
def test_parameters_that_were_not_run_are_refused_with_the_stages_that_would_run(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path, cache=False)
    clone.set(backbone__l2=7)
    clone.run("git", "commit", "-qam", "Another penalty, not run")
    report = check(clone, ok=False)
    stages = re.findall(r"^- `(.*)`$", report, flags=re.MULTILINE)
    assert stages == [
        "params",
        "models/dvc.yaml:train-backbone",
        "models/dvc.yaml:infer-backbone",
        "evaluate",
        "explain",
        "report",
    ]
    assert re.search(r"backbone.l2 *\| 100 *\| 7 *\|", report)
    assert "No interval and no p-value" in report
    assert not (clone.path / "data/raw/sample").exists()


def stale(clone: Path) -> list[str]:
    """What the script would refuse the last commit of a clone for: the stages that dvc repro would run."""
    code = (
        "import json, sys; sys.path.insert(0, '.ci'); from stale import stale_stages; print(json.dumps(stale_stages()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: list[str] = json.loads(ended.stdout)
    return found


@pytest.mark.slow
def test_changed_code_metrics_and_commands_are_found(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    for path, old, new, stage in (
        ("stages/split.py", '"""data/annotations.csv', '"""Data/annotations.csv', "split"),
        ("metrics/evaluation.json", '"macro_f1": 0', '"macro_f1": 1', "evaluate"),
        ("dvc.lock", "cmd: python -m stages.evaluate", "cmd: python -m stages.evaluated", "evaluate"),
    ):
        text = (clone.path / path).read_text(encoding="utf-8")
        assert old in text
        (clone.path / path).write_text(text.replace(old, new), encoding="utf-8")
        assert stale(clone.path)[0] == stage
        clone.run("git", "checkout", "-q", path)
    assert stale(clone.path) == []


@pytest.mark.slow
def test_a_lock_merged_from_two_runs_is_found(origin: Clone, tmp_path: Path) -> None:
    """Each entry is that of a run, but no run has made all of them."""
    clone = fresh(origin, tmp_path)
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text(encoding="utf-8"))
    (out,) = [out for out in lock["stages"]["annotate"]["outs"] if out["path"] == "data/annotations.csv"]
    out["md5"] = "0" * 32
    (clone.path / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    assert "split" in stale(clone.path)


@pytest.mark.slow
def test_metrics_that_are_not_reproduced_are_refused_even_if_the_lock_agrees(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    path, lock = clone.path / "metrics/evaluation.json", clone.path / "dvc.lock"
    honest = path.read_bytes()
    scores = json.loads(honest)
    path.write_text(json.dumps(scores | {"accuracy": 0.97}), encoding="utf-8")
    was, now = (hashlib.md5(content).hexdigest() for content in (honest, path.read_bytes()))  # noqa: S324
    text = lock.read_text(encoding="utf-8")
    assert was in text
    text = text.replace(was, now).replace(f"size: {len(honest)}", f"size: {len(path.read_bytes())}")
    lock.write_text(text, encoding="utf-8")
    clone.run("git", "commit", "-qam", "Better than it is")
    report = check(clone, ok=False)
    assert "dvc.lock is up to date" in report
    assert "**The committed results are not reproduced:**" in report
    assert f"- `accuracy`: 0.97 committed, {scores['accuracy']} reproduced" in report


@pytest.mark.parametrize(
    ("target", "report", "line"),
    [
        ("nowhere", "report.md", "error: nowhere is not a commit of this clone"),
        (
            "HEAD^1",
            "report.md",
            "error: HEAD^1 is not a commit of this clone; a shallow one needs git fetch --unshallow",
        ),
        ("HEAD", "absent/report.md", "absent/report.md can't be written"),
        ("HEAD", ".", "can't be written"),
    ],
)
def test_a_wrong_argument_is_one_line(clone: Clone, target: str, report: str, line: str) -> None:
    shown = clone.run(sys.executable, ".ci/pull_request.py", target, report, ok=False)
    assert line in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.slow
def test_a_part_that_fails_is_in_the_report(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    with (clone.path / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("a: [\n")
    clone.run("git", "commit", "-qam", "Broken")
    report = check(clone, ok=False)
    assert "**Reading params.yaml failed**" in report


@pytest.mark.slow
def test_a_target_that_is_not_up_to_date_is_reported(origin: Clone, tmp_path: Path) -> None:
    clone = fresh(origin, tmp_path)
    clone.set(backbone__l2=7)
    clone.run("git", "commit", "-qam", "Not run")
    clone.run("git", "update-ref", "refs/remotes/origin/main", "HEAD")
    clone.run("git", "commit", "-q", "--allow-empty", "-m", "README alone")
    assert "The target branch is not up to date either: it would run params, models/" in check(clone, ok=False)


def test_the_last_commit_is_up_to_date(tmp_path: Path) -> None:
    """Otherwise each pull request would be refused. Run dvc repro, and commit what it changes.

    In a clone: uncommitted changes of the working copy neither cause nor hide a difference.
    """
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    assert stale(tmp_path / "clone") == []


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
                "CONCLUSION": "success",
                "RUN": "https://example.org/run/1",
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


def test_one_comment_is_written_and_later_updated(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    for number in range(150):
        github.add("someone", f"remark {number}")
    github.add("someone", "<!-- results of this pull request -->\nnot the bot's")
    report.write_text("first", encoding="utf-8")
    assert "pull request 7: comment written" in github.comment(report)
    report.write_text("second ä", encoding="utf-8")
    assert "pull request 7: comment updated" in github.comment(report)
    own = [comment["body"] for comment in github.comments if comment["user"]["login"] == "github-actions[bot]"]
    (text,) = own
    assert text.startswith(
        "<!-- results of this pull request -->\n[Run](https://example.org/run/1) of abc: **success**."
    )
    assert text.endswith("written by the pull request's own code.\n\nsecond ä")
    assert github.comments[150]["body"].endswith("not the bot's")


def test_a_long_report_is_cut_and_an_older_commit_gets_no_comment(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("x" * 100_000, encoding="utf-8")
    github.comment(report)
    assert len(github.comments[-1]["body"]) < 65_536
    assert "the rest is in the run's summary" in github.comments[-1]["body"]
    assert "not exactly one open pull request" in github.comment(report, HEAD_SHA="gone")
    assert len(github.comments) == 1


def test_a_report_that_is_a_link_is_refused(github: GitHub, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret", encoding="utf-8")
    (tmp_path / "report.md").symlink_to(tmp_path / "secret")
    github.comment(tmp_path / "report.md")
    assert github.comments[-1]["body"].endswith("Its report is a link: refused.")


def test_a_run_without_a_report_is_reported_and_nobody_is_mentioned(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    github.comment(report, CONCLUSION="failure")
    assert github.comments[-1]["body"].endswith("of abc: **failure**. It wrote no report.")
    report.write_text("hello @everyone", encoding="utf-8")
    github.comment(report)
    assert "@everyone" not in github.comments[-1]["body"]
    github.pulls.append({"number": 9, "head": {"label": "someone:branch", "sha": "abc"}})
    assert "not exactly one open pull request" in github.comment(report)


def test_a_server_that_does_not_answer_is_one_line(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("x", encoding="utf-8")
    assert "error: " in github.comment(report, ok=False, GITHUB_API_URL="http://127.0.0.1:9")
    assert "expected https" in github.comment(report, ok=False, GITHUB_API_URL="ftp://example.org")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_have_only_the_permissions_that_they_need(path: Path) -> None:
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
            # What a stranger chooses (a branch's name) must reach the shell as a variable, never as code.
            assert "${{" not in step.get("run", "")
    assert all(re.search(r"@[0-9a-f]{40} # v\d", line) for line in text.splitlines() if "uses:" in line)


def test_the_workflow_that_may_write_runs_no_code_of_the_pull_request() -> None:
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
