"""Put a report on a pull request, as one comment that is updated.

    GITHUB_TOKEN=… GITHUB_REPOSITORY=owner/name HEAD=owner:branch HEAD_SHA=… CONCLUSION=… RUN=… python3 .ci/comment.py REPORT

CONCLUSION and RUN are the result and the address of the run that wrote the report. If it wrote none, the comment says so.

This runs with the right to write, so it runs no code of the pull request, and reads nothing of it but the report's text. It
needs nothing but Python.
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

MARK = "<!-- results of this pull request -->"
BOT = "github-actions[bot]"
LIMIT = 64_000  # GitHub accepts 65,536 characters
PAGE = 100


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer of GitHub's API to one request."""
    url = os.environ.get("GITHUB_API_URL", "https://api.github.com") + path
    if not url.startswith(("https://", "http://127.0.0.1")):
        sys.exit(f"error: GITHUB_API_URL is {url}; expected https")
    request = urllib.request.Request(  # noqa: S310
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
            "X-GitHub-Api-Version": "2022-11-28",
        },
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def pull_request(repository: str, head: str, sha: str) -> int | None:
    """The number of the one open pull request from `head` (owner:branch) whose last commit is `sha`."""
    query = urllib.parse.urlencode({"state": "open", "head": head, "per_page": PAGE})
    found = [each["number"] for each in ask("GET", f"/repos/{repository}/pulls?{query}") if each["head"]["sha"] == sha]
    return found[0] if len(found) == 1 else None


def comment_of(report: Path) -> str:
    """The facts about the run, and then the report, without mentions of people."""
    header = f"{MARK}\n[Run]({os.environ['RUN']}) of {os.environ['HEAD_SHA']}: **{os.environ['CONCLUSION']}**."
    if report.is_symlink():  # it could lead to any file of this machine
        return f"{header} Its report is a link: refused."
    if not report.is_file():
        return f"{header} It wrote no report."
    text = report.read_text(encoding="utf-8", errors="replace").replace("@", "@\u200b")
    if len(text) > LIMIT:
        text = text[:LIMIT] + "\n\n… the rest is in the run's summary."
    return f"{header} What follows was written by the pull request's own code.\n\n{text}"


def own_comment(repository: str, number: int) -> int | None:
    """The comment that an earlier run wrote."""
    page = 1
    while found := ask("GET", f"/repos/{repository}/issues/{number}/comments?per_page={PAGE}&page={page}"):
        for comment in found:
            if comment["user"]["login"] == BOT and comment["body"].startswith(MARK):
                return int(comment["id"])
        page += 1
    return None


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python3 .ci/comment.py REPORT")
    text = comment_of(Path(sys.argv[1]))
    repository = os.environ["GITHUB_REPOSITORY"]
    number = pull_request(repository, os.environ["HEAD"], os.environ["HEAD_SHA"])
    if number is None:
        print("not exactly one open pull request has this commit as its last one: no comment")
        return
    comment = own_comment(repository, number)
    if comment is None:
        ask("POST", f"/repos/{repository}/issues/{number}/comments", {"body": text})
    else:
        ask("PATCH", f"/repos/{repository}/issues/comments/{comment}", {"body": text})
    print(f"pull request {number}: comment {'written' if comment is None else 'updated'}")


if __name__ == "__main__":
    try:
        main()
    except (urllib.error.URLError, KeyError) as error:
        sys.exit(f"error: {error!r}; expected GitHub's API to answer, and the variables of this file's first lines")
