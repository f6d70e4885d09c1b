"""A web server on loopback that breaks off, knows no ranges, is slow, or refuses."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from stages.common.images.download import BLOCK


class Server(ThreadingHTTPServer):
    """Serves `files` while a `with` block runs.

    The first `cuts` answers end after `cut` bytes. Without `ranges` each answer is the whole file. Between two blocks it
    waits `pause` seconds. A `status` other than 200 is the answer to every request. `asked` has the requests so far: the
    file's name and the range wanted.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cuts = 0
        self.cut = 0
        self.asked: list[tuple[str, str | None]] = []
        self.status = 200
        self.pause = 0.0
        self.wait = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.thread.join()
        super().__exit__(kind, error, trace)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def ranges_of(self, name: str) -> list[str | None]:
        """The ranges asked for of one file."""
        return [wanted for asked, wanted in self.asked if asked == name]


def first_byte(wanted: str | None) -> int:
    """Where a range begins."""
    assert wanted is not None
    return int(wanted.removeprefix("bytes=").rstrip("-"))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.strip("/"))
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path.strip("/"), wanted))
        if content is None or self.server.status != 200:
            self.send_error(404 if content is None else self.server.status)
            return
        start = 0
        if wanted and self.server.ranges:
            start = first_byte(wanted)
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: self.server.cut]
        with suppress(ConnectionError):  # a client that was killed
            for start in range(0, len(body), BLOCK):
                self.wfile.write(body[start : start + BLOCK])
                self.server.wait.wait(self.server.pause)

    def log_message(self, format: str, *args: object) -> None:
        pass
