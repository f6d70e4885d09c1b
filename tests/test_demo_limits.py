"""What the demo's server refuses and keeps to, without a server: its limits, errors, and what it leaves behind."""

import asyncio
import errno
import io
import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import demo
from stages.common.demo import app as application
from stages.common.demo import guard, models
from stages.common.demo.models import Choice, Models, choices
from stages.common.demo.record import Record
from stages.common.images.decoding import DecodeError
from stages.common.networks.serialization import load, save
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from tests.test_demo import LABELS, SIZE, photograph, project, write_lock


@pytest.fixture
def here(workspace: Path) -> Path:
    project(workspace)
    return workspace


def test_a_port_in_use_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["demo", "--port", port])
        with pytest.raises(UserError, match=f"--port is {port}, which is in use; name another one, or 0"):
            demo.main()


def test_a_host_of_another_machine_and_a_model_that_is_absent_are_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (
            ["--host", "192.0.2.1", "--port", "0"],
            "--host is '192.0.2.1', --port 0: .*; expected an address of this machine",
        ),
        (["--host", "", "--port", "0"], "--host is ''"),
        (["--model", "xception"], "models/xception/model.keras: no such model; make it with dvc repro"),
        (["--model", "params.yaml"], "params.yaml: not a model of this project"),
    ):
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        with pytest.raises(UserError, match=message):
            demo.main()


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="starlette and uvicorn not installed; pip install -r requirements-demo.txt"):
        demo.main()


def test_the_upload_is_private_while_it_is_read_and_removed_whatever_happens(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = photograph(tmp_path / "one.png", 16).read_bytes()
    offered = Models(choices(None))
    seen: list[Path] = []

    def look(path: Path, size: int) -> np.ndarray:
        assert path.read_bytes() == content
        assert path.parent.stat().st_mode & 0o077 == 0
        seen.append(path)
        if failure:
            raise failure
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(models, "decode", look)
    for failure in (None, RuntimeError(), MemoryError()):
        if failure:
            with pytest.raises(type(failure)):
                offered.answer(0, content)
        else:
            offered.answer(0, content)
    assert len(seen) == 3
    assert not any(path.parent.exists() for path in seen)


def test_one_thread_at_a_time_uses_a_model(here: Path) -> None:
    running: list[int] = []
    most: list[int] = []

    class Network:
        input_shape = (None, SIZE, SIZE, 3)

        def predict_on_batch(self, images: np.ndarray) -> np.ndarray:
            running.append(1)
            threading.Event().wait(0.05)
            most.append(len(running))
            running.pop()
            return np.full((1, len(LABELS)), 1 / len(LABELS))

    offered = Models(choices(None))
    offered._loaded[0] = offered.get(0)._replace(network=Network(), parts=None)
    content = photograph(here / "one.png", 17).read_bytes()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: offered.answer(0, content), range(4)))
    assert most == [1, 1, 1, 1]


def test_the_models_are_those_that_are_trained_and_that_asked_for_is_first(here: Path) -> None:
    assert choices(None) == [Choice("scratch", "scratch"), Choice("vgg16", "vgg16")]
    assert choices("vgg16") == [Choice("vgg16", "vgg16"), Choice("scratch", "scratch")]
    same = str(paths.model_file("scratch"))
    assert choices(same) == [Choice(same, "scratch"), Choice("vgg16", "vgg16")]
    shutil.copy(same, "other.keras")
    assert choices("other.keras")[0] == Choice("other.keras", None)


def test_without_predictions_or_pixels_there_is_neither_a_record_nor_an_example(here: Path) -> None:
    shutil.rmtree(paths.RESIZED)
    assert Models(choices(None)).examples() is None
    paths.predictions("scratch").unlink()
    offered = Models(choices(None))
    assert offered.examples() is None
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    answer = offered.answer(0, file.getvalue())
    assert (answer["record"], answer["share_correct"]) == (None, None)


def test_predictions_of_other_labels_are_not_this_models(here: Path) -> None:
    network, _ = load(paths.model_file("scratch"))
    save(network, paths.model_file("scratch"), LABELS[::-1])
    write_lock(Path())
    with pytest.raises(UserError, match="models/scratch/predictions.csv: not of the labels of"):
        Models(choices(None)).get(0)


def test_predictions_of_an_earlier_model_are_not_this_ones(here: Path) -> None:
    network, _ = load(paths.model_file("scratch"))
    network.get_layer("logits").set_weights([1.1 * weights for weights in network.get_layer("logits").get_weights()])
    save(network, paths.model_file("scratch"), LABELS)
    offered = Models(choices(None))
    assert offered.examples() is None
    assert offered.get(0).record is None


def test_of_an_image_that_is_not_in_a_models_test_part_it_says_so(here: Path) -> None:
    offered = Models(choices(None))
    examples = offered.examples()
    assert examples
    content, name = examples.content(0), examples.shown[0].image
    assert offered.answer(0, content, name)["note"] is None
    assert offered.answer(0, content)["note"] is None
    assert offered.answer(1, content, name)["note"].startswith("vgg16 may have learned from this image")


def test_the_record_is_of_the_images_with_such_a_probability(here: Path) -> None:
    record = Record(paths.predictions("scratch"))
    table = record.table
    inside = table[(table["probability"] > 0.4) & (table["probability"] <= 0.6)]
    correct = int((inside["label"] == inside["prediction"]).sum())
    assert 0 < correct < len(inside)
    for probability in (0.41, 0.6):
        assert record.bin(probability) == (0.4, 0.6, len(inside), correct)
    share = (
        f"{100 * correct / len(inside):.0f} % of the predictions with a probability between 0.4 and 0.6 were correct"
    )
    assert str(record.bin(0.5)) == f"On the test part {share} ({correct} of {len(inside)}): the mark in the first bar."
    assert str(record.bin(0.9)) == "On the test part no prediction had a probability between 0.8 and 1.0."
    assert [record.bin(value).low for value in (0.0, 0.2, 0.21, 1.0)] == [0.0, 0.0, 0.2, 0.8]


class Stub(Models):
    """Models of which the answer is what a function returns."""

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        super().__init__([Choice("stub", None)])
        self.say = answer

    def get(self, number: int) -> Any:
        return None

    def examples(self) -> None:
        return None

    def answer(self, number: int, content: bytes, example: str | None = None) -> dict[str, Any]:
        return self.say()


class Client:
    """Asks an application as a server does, and counts the parts of the body that it took."""

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        self.demo = application.Demo(Stub(answer))
        self.app = application.app(self.demo, lambda: None)
        self.taken = 0
        self.sent: list[Any] = []

    async def post(self, part: bytes = b"x", parts: int = 1) -> tuple[int, dict[str, Any]]:
        """The status and the content of the answer to a body of `parts` parts, which for 0 never comes."""
        self.taken, self.sent = 0, []

        async def receive() -> dict[str, Any]:
            self.taken += 1
            if parts == 0:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": part, "more_body": self.taken < parts}

        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/labels", "query_string": b"model=0", "headers": []}
        await self.app(scope, receive, send)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, Any]]:
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])


def test_of_a_body_without_a_length_no_more_is_read_than_the_limit() -> None:
    client = Client(dict)
    status, _ = asyncio.run(client.post(bytes(1_000_000), 1000))
    assert (status, client.taken) == (413, application.MAX_BYTES // 1_000_000 + 1)
    assert asyncio.run(client.post(bytes(1_000_000), application.MAX_BYTES // 1_000_000)) == (200, {})


def test_a_slow_answer_and_a_slow_upload_end_in_time_and_free_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(application, "MAX_REQUESTS", 1)
    go_on = threading.Event()
    client = Client(lambda: {"waited": go_on.wait(60)})

    async def soon() -> tuple[int, dict[str, Any]]:
        async with asyncio.timeout(4):
            return await client.post()

    async def ask() -> None:
        assert await client.post(parts=0) == (
            504,
            {"error": "no answer within 0.2 seconds; try a smaller photograph, or again later"},
        )
        assert (await soon())[0] == 504
        # Its thread still runs.
        assert await client.post() == (503, {"error": "1 photographs are waiting already; try again in a few seconds"})
        go_on.set()
        while (found := await client.post())[0] == 503:
            await asyncio.sleep(0.01)
        assert found == (200, {"waited": True})

    asyncio.run(ask())


def test_a_request_that_a_stopping_server_breaks_off_has_an_answer() -> None:
    client = Client(dict)

    async def ask() -> tuple[int, dict[str, Any]]:
        task = asyncio.create_task(client.post(parts=0))
        while not client.taken:
            await asyncio.sleep(0.01)
        task.cancel()
        return await task

    assert asyncio.run(ask()) == (503, {"error": "the server is being stopped"})


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            500,
            "the server's system reports 'No space left on device'",
        ),
        (MemoryError(), 503, "the server is out of memory; try a smaller photograph, or again later"),
        (UserError("a model: damaged"), 500, "a model: damaged"),
        (DecodeError("9x9 pixels"), 422, "9x9 pixels"),
    ],
)
def test_errors_are_lines(
    error: Exception,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> dict[str, Any]:
        raise error

    for debug in ("0", "1"):
        monkeypatch.setenv("DEBUG", debug)
        assert asyncio.run(Client(fail).post()) == (status, {"error": line})
        output = capsys.readouterr().err
        assert ("Traceback" in output) == (debug == "1" and status == 500)
        assert output.endswith(f"demo: error: {line}\n") == (status == 500)


def test_a_bug_has_its_traceback_in_the_terminal_alone() -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("a secret")

    client = Client(fail)
    # Uvicorn shows it.
    with pytest.raises(RuntimeError, match="a secret"):
        asyncio.run(client.post())
    assert client.answer() == (500, {"error": "the server failed; its terminal says why"})


def test_hosts() -> None:
    local, network = guard.host_check("127.0.0.1", True), guard.host_check("0.0.0.0", False)  # noqa: S104
    for host in ("127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"):
        assert local(host)
        assert network(host)
    for host in ("192.168.1.2:7860", f"{socket.gethostname()}:7860"):
        assert not local(host)
        assert network(host)
    for host in ("", "example.org", "127.0.0.1.example.org:7860", "localhost.example.org"):
        assert not local(host)
        assert not network(host)
    assert guard.host_check("mine.example", True)("mine.example:80")


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in (application.TEMPLATE, *(application.HERE / name for name in application.FILES)):
        assert not re.findall(r"(?:https?:)?//\w", re.sub(r"(?m)//[^\n]*$", "", path.read_text(encoding="utf-8")))
