"""The page on which people try a model: in real Chromium, from a server process, and the server's limits one by one."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from stages.common.dataset import chunks
from stages.common.demo import app as application
from stages.common.demo.record import Record
from stages.common.evaluation.predictions import prediction_table
from stages.common.networks.scratch import scratch
from stages.common.networks.serialization import load, save
from stages.common.prediction.classifier import label_images
from stages.common.runtime import paths, tracked
from stages.common.runtime.backend import keras
from stages.train import with_probabilities
from tests.conftest import ROOT, TINY, set_parameters
from tests.test_report import CHROMIUM, QUIET

LABELS = ["a", "b, c", "<i>d</i>", "e", "f", "g"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
COMMAND = [sys.executable, "-m", "commands.demo", "--port", "0"]
SIZE = 72


def project(folder: Path) -> None:
    """Trained models, one of them without feature maps, predictions of a test part, and its pixels."""
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    (folder / "extra").mkdir(exist_ok=True)
    set_parameters(folder / "params.yaml", {**TINY, "pretrain.extra": "extra"})
    keras.utils.set_random_seed(1)
    logits = scratch(SIZE, 2, [4], 0.0, len(LABELS))
    save(with_probabilities(logits, "scratch"), folder / paths.model_file("scratch"), LABELS)
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    small = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    flat = keras.Model(images, keras.layers.Dense(len(LABELS), "tanh", name="logits")(small))
    save(with_probabilities(flat, "vgg16"), folder / paths.model_file("vgg16"), LABELS)
    names = [f"{number} <b>.jpg" for number in range(20)]
    generator = np.random.default_rng(1)
    chunks.write(
        folder / paths.RESIZED / "00000.h5",
        names,
        {"pixels": generator.integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)},
    )
    truth = np.array(LABELS)[np.arange(20) % len(LABELS)]
    table = pd.DataFrame({"image": names, "video": "", "label": truth})
    # A quarter, a third and so on: a test image in each bin but the last.
    probabilities = np.full((20, len(LABELS)), 0.01)
    probabilities[np.arange(20), (np.arange(20) + np.arange(20) % 3) % len(LABELS)] = np.linspace(0.1, 0.75, 20)
    prediction_table(table, probabilities, LABELS).to_csv(folder / paths.predictions("scratch"), index=False)
    write_lock(folder)


def write_lock(folder: Path) -> None:
    """The lock file that tells that the model scratch made its predictions."""
    made = {
        kind: [{"path": str(path), "md5": tracked.md5(folder / path)}]
        for kind, path in (("deps", paths.model_file("scratch")), ("outs", paths.predictions("scratch")))
    }
    lock = folder / paths.MODELS_LOCK
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"infer-scratch": made}}), encoding="utf-8")


class Server(NamedTuple):
    folder: Path
    url: str
    temporary: Path  # where the server makes its temporary files


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("demo")
    project(folder)
    with started(folder, "--no-browser") as (process, lines):
        yield Server(folder, lines[-1].split()[1], folder / "temporary")
        assert process.poll() is None
        assert not (folder / "opened").exists()


class started:  # noqa: N801
    """A server process while a `with` block runs, and what it printed until it served."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "temporary").mkdir(exist_ok=True)
        browser = folder / "browser"
        browser.write_text('#!/bin/sh\necho "$1" > opened\n')
        browser.chmod(0o755)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder / "temporary"),
            "BROWSER": f"{browser} %s",
        }
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> tuple[subprocess.Popen[str], list[str]]:
        assert self.process.stdout
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if "http://" in line:
                return self.process, lines
        raise AssertionError(lines)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(CHROMIUM)} is installed")
    # A busy machine takes its time, above all to load a model.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=[*QUIET, *CAMERA])


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Page]:
    """The page, from which nothing may be asked of another server, nor anything be said in the console."""
    yield from opened(browser, server)


def opened(browser: Browser, server: Server, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    page, seen = context.new_page(), list[str]()

    def see(what: str) -> None:
        # Chromium tells of each answer from 400 on, also where it is expected.
        if not what.startswith((server.url, "data:")) and "responded with a status of 422" not in what:
            seen.append(what)

    context.on("request", lambda request: see(request.url))
    page.on("console", lambda message: see(message.text))
    page.on("pageerror", lambda error: see(str(error)))
    page.goto(server.url)
    yield page
    context.close()
    assert seen == []
    assert list(server.temporary.iterdir()) == []


def photograph(path: Path, seed: int, size: tuple[int, int] = (90, 60), **options: Any) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def expected(server: Server, path: Path, model: str = "scratch") -> list[tuple[str, str]]:
    """What `label_images` says of a file: five labels with their probabilities."""
    network, labels = load(server.folder / paths.model_file(model))
    ((_, found),) = label_images(network, [path])
    assert isinstance(found, np.ndarray)
    return [(labels[place], f"{found[place]:.3f}") for place in np.argsort(-found)[:5]]


def shown(page: Page) -> list[tuple[str, str]]:
    """What the page says, once it does."""
    expect(page.locator("#wait")).to_be_hidden()
    expect(page.locator("#result")).to_be_visible()
    rows = page.locator("#labels tr").all()
    return [(row.locator("th").inner_text(), row.locator("td").first.inner_text()) for row in rows]


def test_an_upload_is_labelled_as_predict_does_it(server: Server, tab: Page, tmp_path: Path) -> None:
    path = photograph(tmp_path / "ü <b>.png", 1)
    tab.set_input_files("#file", path)
    assert shown(tab) == expected(server, path)
    assert tab.inner_text("#best") == expected(server, path)[0][0]
    assert tab.inner_text("#name") == path.name
    for picture in ("#photograph", "#heat-map"):
        assert tab.locator(picture).evaluate("each => each.decode().then(() => each.naturalWidth)") == 90
    widths = tab.locator(".bar > span").evaluate_all("all => all.map(each => parseFloat(each.style.width))")
    assert widths == pytest.approx([100 * float(number) for _, number in expected(server, path)], abs=0.06)
    record = Record(server.folder / paths.predictions("scratch")).bin(widths[0] / 100)
    assert tab.inner_text("#record") == str(record)
    assert float(tab.evaluate("parseFloat(document.querySelector('.bar i').style.left)")) == pytest.approx(
        100 * record.correct / record.images, abs=0.01
    )


def test_a_bad_file_is_one_line_and_the_next_photograph_works(server: Server, tab: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("<html>")
    tab.set_input_files("#file", bad)
    line = "bad.jpg: cannot identify image file; expected a photograph as JPEG, PNG, WebP, TIFF, BMP, GIF or PPM"
    expect(tab.locator("#error")).to_have_text(line)
    expect(tab.locator("#result")).to_be_hidden()
    expect(tab.locator("#wait")).to_be_hidden()
    good = photograph(tmp_path / "good.jpg", 2)
    tab.set_input_files("#file", good)
    assert shown(tab) == expected(server, good)
    assert tab.inner_text("#error") == ""
    tab.set_input_files("#file", bad)
    expect(tab.locator("#error")).to_have_text(line)
    expect(tab.locator("#result")).to_be_hidden()


def test_20_mb_are_labelled_and_more_than_the_limit_is_refused_without_a_request(
    server: Server, tab: Page, tmp_path: Path
) -> None:
    path = photograph(tmp_path / "large.png", 3, (2650, 2520), compress_level=0)
    assert 20_000_000 < path.stat().st_size < application.MAX_BYTES
    tab.set_input_files("#file", path)
    assert shown(tab) == expected(server, path)
    assert tab.locator("#heat-map").evaluate("each => each.decode().then(() => each.naturalWidth)") == 640
    with path.open("r+b") as file:
        file.truncate(application.MAX_BYTES + 1)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.set_input_files("#file", path)
    expect(tab.locator("#error")).to_have_text("large.png: 25.0 MB; expected at most 25 MB")
    expect(tab.locator("#result")).to_be_hidden()
    tab.select_option("#model", "vgg16")  # labels no older photograph
    expect(tab.locator("#error")).not_to_have_text("")
    assert asked == []


def test_two_users_at_once_have_their_own_answers(server: Server, browser: Browser, tmp_path: Path) -> None:
    files = [photograph(tmp_path / f"{number}.png", number) for number in (4, 5)]
    users = [opened(browser, server) for _ in files]
    pages = [next(user) for user in users]
    for page, path in zip(pages, files, strict=True):
        page.set_input_files("#file", path)
    found = [shown(page) for page in pages]
    assert found == [expected(server, path) for path in files]
    assert found[0] != found[1]
    for user in users:
        next(user, None)


def test_many_requests_at_once_for_two_models_are_each_answered_right(server: Server, tmp_path: Path) -> None:
    cases = [
        (number, path, name)
        for path in (photograph(tmp_path / f"{seed}.png", seed) for seed in (6, 7, 8))
        for number, name in enumerate(("scratch", "vgg16"))
    ]
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(lambda case: post(server, case[1].read_bytes(), f"model={case[0]}"), cases))
    for (_, path, name), (status, answer) in zip(cases, answers, strict=True):
        assert (status, answer.get("model")) == (200, name)
        found = [(each["label"], f"{each['probability']:.3f}") for each in answer["labels"]]
        assert found == expected(server, path, name)


def test_another_model_labels_the_same_photograph_and_says_why_it_has_no_heat_map(
    server: Server, tab: Page, tmp_path: Path
) -> None:
    path = photograph(tmp_path / "one.png", 9)
    tab.set_input_files("#file", path)
    shown(tab)
    expect(tab.locator("#why")).to_have_text("")
    assert tab.locator("#model option").all_inner_texts() == ["scratch", "vgg16"]
    tab.select_option("#model", "vgg16")
    expect(tab.locator("#why")).to_contain_text("vgg16: it has no feature maps")
    assert shown(tab) == expected(server, path, "vgg16")
    expect(tab.locator("#heat")).to_be_hidden()
    expect(tab.locator("#record")).to_have_text("")
    assert tab.locator(".bar i").count() == 0


def test_the_examples_are_of_the_test_part_and_can_be_labelled(server: Server, tab: Page, tmp_path: Path) -> None:
    examples = tab.locator(".example")
    assert examples.all_inner_texts() == [label for _ in range(2) for label in sorted(LABELS)]
    rows = chunks.Rows(server.folder / paths.RESIZED, "pixels")
    examples.nth(1).click()
    name = examples.nth(1).get_attribute("data-image")
    assert name
    Image.fromarray(rows.read([name])[0]).save(tmp_path / "example.png")
    assert shown(tab) == expected(server, tmp_path / "example.png")
    assert tab.inner_text("#name") == f"{name}, true label {sorted(LABELS)[1]}"
    expect(tab.get_by_text("scratch has not seen them in training.")).to_be_visible()
    expect(tab.locator("#note")).to_have_text("")
    tab.select_option("#model", "vgg16")
    expect(tab.locator("#note")).to_contain_text("vgg16 may have learned from this image")


DROP = """(kind, name) => {
  const data = new DataTransfer();
  if (name) data.items.add(new File([Uint8Array.from(atob(CONTENT), each => each.charCodeAt(0))], name));
  const event = kind === "drop" ? new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})
                                : new ClipboardEvent(kind, {clipboardData: data, bubbles: true});
  document.querySelector("h1").dispatchEvent(event);
  return event.defaultPrevented;
}"""


@pytest.mark.parametrize(("kind", "otherwise"), [("drop", "No file was dropped"), ("paste", "The clipboard has no")])
def test_a_photograph_can_be_dropped_or_pasted(
    server: Server, tab: Page, tmp_path: Path, kind: str, otherwise: str
) -> None:
    path = photograph(tmp_path / "one.png", 10)
    content = json.dumps(base64.b64encode(path.read_bytes()).decode())
    run = f"([kind, name]) => ({DROP.replace('CONTENT', content)})(kind, name)"
    prevented = tab.evaluate(run, [kind, "one.png"])
    assert shown(tab) == expected(server, path)
    # Otherwise the browser would leave the page.
    assert prevented == (kind == "drop")
    tab.evaluate(run, [kind, None])
    expect(tab.locator("#error")).to_contain_text(otherwise)


def test_the_camera_takes_a_photograph_and_is_switched_off(tab: Page) -> None:
    tab.click("#camera")
    expect(tab.locator("#viewfinder")).to_be_visible()
    end = time.monotonic() + 30
    while not tab.evaluate(
        "document.querySelector('#video').videoWidth"
    ):  # `wait_for_function` is against the page's policy
        assert time.monotonic() < end
    tab.evaluate("window.tracks = document.querySelector('#video').srcObject.getTracks()")
    tab.keyboard.press("Enter")
    assert len(shown(tab)) == 5
    assert tab.inner_text("#name") == "camera.jpg"
    expect(tab.locator("#viewfinder")).to_be_hidden()
    assert tab.evaluate("tracks.map(each => each.readyState)") == ["ended"]


def test_there_is_no_button_for_a_camera_that_the_browser_does_not_give(server: Server, browser: Browser) -> None:
    context = browser.new_context()
    context.add_init_script("delete Navigator.prototype.mediaDevices")
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#choose")).to_be_visible()
    expect(page.locator("#camera")).to_be_hidden()
    context.close()


def test_of_two_photographs_the_later_is_shown(server: Server, tab: Page, tmp_path: Path) -> None:
    first, second = (photograph(tmp_path / f"{number}.png", number) for number in (11, 12))
    held: list[Route] = []
    tab.route("**/labels*", lambda route: route.continue_() if held else held.append(route))
    with tab.expect_request("**/labels*"):
        tab.set_input_files("#file", first)
    expect(tab.locator("#status")).to_have_text("Labelling 11.png …")
    expect(tab.locator("#wait")).to_be_visible()
    with tab.expect_event("requestfailed") as ended:
        tab.set_input_files("#file", second)
    assert "ABORTED" in str(ended.value.failure)
    assert shown(tab) == expected(server, second)
    held[0].fulfill(status=200, json={"labels": []})
    tab.wait_for_timeout(100)
    assert tab.inner_text("#name") == "12.png"
    assert shown(tab) == expected(server, second)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_whole_and_accessible_on_phones_and_in_the_dark(
    server: Server, browser: Browser, tmp_path: Path, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    user = opened(browser, server, color_scheme=scheme, viewport={"width": width, "height": 740})
    page = next(user)
    path = photograph(tmp_path / f"{'a long name ' * 9}.png", 13, (60, 700))
    for step in ("start", "result", "waiting", "error"):
        if step == "result":
            page.set_input_files("#file", path)
            shown(page)
        if step == "waiting":
            page.route("**/labels*", lambda route: None, times=1)
            page.set_input_files("#file", path)
            expect(page.locator("#wait")).to_be_visible()
        if step == "error":
            page.set_input_files("#file", {"name": "bad" * 60, "mimeType": "image/png", "buffer": b"x"})
            expect(page.locator("#error")).not_to_be_empty()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, step
        violations = Axe().run(page).response["violations"]
        assert [(found["id"], found["nodes"][0]["html"][:200]) for found in violations] == [], step
    back = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(back[:3]) / 3 > 200) == (scheme == "light")
    next(user, None)


def test_the_keyboard_reaches_everything(tab: Page) -> None:
    reached = []
    for _ in range(5):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached == ["choose", "camera", "model", "example", "example"]
    with tab.expect_file_chooser():
        tab.focus("#choose")
        tab.keyboard.press("Enter")


def test_the_page_can_not_ask_another_server(server: Server, browser: Browser) -> None:
    page = browser.new_context().new_page()
    page.goto(server.url)
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(1)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/"
        page.evaluate("address => { fetch(address).catch(() => 0); new Image().src = address; }", address)
        with pytest.raises(TimeoutError):
            other.accept()
    page.context.close()


def request(
    server: Server, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(method, target, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def post(server: Server, body: bytes, query: str = "model=0", **headers: str) -> tuple[int, dict[str, Any]]:
    response, content = request(server, "POST", f"/labels?{query}", body, headers)
    return response.status, json.loads(content)


def test_every_answer_has_the_headers(server: Server) -> None:
    for target, status in (("/", 200), ("/demo.js", 200), ("/absent", 404), ("/labels", 405)):
        response, content = request(server, "GET", target, None, {})
        assert response.status == status
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self' 'sha256-")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert b"://" not in content.replace(b"http://www.w3.org", b"")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "SELF"}, 200),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "example.org"}, 403),
        ({"Host": "example.org", "Origin": "http://example.org"}, 403),
    ],
)
def test_only_its_own_page_may_use_it(server: Server, tmp_path: Path, headers: dict[str, str], status: int) -> None:
    headers = {name: server.url.rstrip("/") if value == "SELF" else value for name, value in headers.items()}
    found, answer = post(server, photograph(tmp_path / "one.png", 14).read_bytes(), **headers)
    assert found == status
    assert ("labels" in answer) == (status == 200)
    if "Host" in headers:
        assert request(server, "GET", "/", None, headers)[0].status == 403


def test_what_the_query_says_is_checked(server: Server) -> None:
    for query in ("", "model=2", "model=-1", "model=x", "model=0000000000", "model=0&example=12", "model=0&example="):
        status, answer = post(server, b"x", query)
        assert (status, list(answer)) == (404, ["error"]), query


def test_the_size_is_refused_before_the_body_is_sent(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.putrequest("POST", "/labels?model=0")
    connection.putheader("Content-Length", str(application.MAX_BYTES + 1))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read()) == {"error": "the photograph is too large; expected at most 25 MB"}
    connection.close()


@pytest.mark.slow
def test_for_the_network_it_warns_and_ctrl_c_ends_it_after_the_last_answer(tmp_path: Path) -> None:
    project(tmp_path)
    content = photograph(tmp_path / "one.png", 15).read_bytes()
    with started(tmp_path, "--host", "0.0.0.0") as (process, lines):  # noqa: S104
        assert lines[0] == "demo: anybody who can reach this machine over the network can use it"
        (port,) = re.findall(r":(\d+)/", lines[1])
        assert lines[1].endswith(" (Ctrl-C ends it)")
        server = Server(tmp_path, f"http://127.0.0.1:{port}/", tmp_path / "temporary")
        assert post(server, content)[0] == 200
        with socket.create_connection(("127.0.0.1", int(port))) as connection:
            head = f"POST /labels?model=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}"
            connection.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 100")
            process.send_signal(signal.SIGINT)
            connection.sendall(content)
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200")
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (130, "")
        assert (tmp_path / "opened").read_text().strip() == lines[1].split()[1]
        assert list(server.temporary.iterdir()) == []
