"""What the page's server answers, and within which limits."""

import asyncio
import base64
import hashlib
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from stages.common.demo.models import Models
from stages.common.images.decoding import DecodeError
from stages.common.report.template import render
from stages.common.runtime.errors import UserError, is_system_fault, print_traceback, printable

HERE = Path(__file__).parent
TEMPLATE = HERE.parent / "report" / "demo.html"
FILES = {"demo.js": "text/javascript", "demo.css": "text/css"}
MAX_BYTES = 25_000_000  # of a photograph
MAX_SECONDS = 60  # from the head of a request to its answer
WORKERS = 2  # photographs that are decoded at a time: each may take a few 100 MB
MAX_REQUESTS = 8  # photographs that are received, wait or are labelled
UNKNOWN = "cannot identify image file"
KNOWN = "expected a photograph as JPEG, PNG, WebP, TIFF, BMP, GIF or PPM"


class Demo:
    """The page and its labels. Nothing of a request outlives its answer, but for the thread of one that took too long."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.examples = models.examples()
        self.html = render(
            TEMPLATE,
            models=[printable(choice.name) for choice in models.offered],
            examples=self.examples.shown if self.examples else [],
            max_bytes=MAX_BYTES,
        )
        self.pool = ThreadPoolExecutor(WORKERS)
        self.free = threading.BoundedSemaphore(MAX_REQUESTS)

    def styles(self) -> str:
        """Where the page's styles may come from: this server, and the page itself, by digest."""
        inside = re.findall("<style>(.*?)</style>", self.html, flags=re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inside]
        return " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self.html)

    async def labels(self, request: Request) -> Response:
        """The labels of the photograph in the body, or of the example of which the query has the number."""
        model = _number(request, "model", len(self.models.offered))
        example = None
        if "example" in request.query_params:
            example = _number(request, "example", len(self.examples.shown) if self.examples else 0)
        if not self.free.acquire(blocking=False):
            raise HTTPException(503, f"{MAX_REQUESTS} photographs are waiting already; try again in a few seconds")
        work: Future[dict[str, Any]] | None = None
        try:
            async with asyncio.timeout(MAX_SECONDS):
                content = await _body(request) if example is None else b""
                work = self.pool.submit(self._answer, model, example, content)
                return JSONResponse(await asyncio.wrap_future(work))
        except asyncio.CancelledError as error:
            raise HTTPException(503, "the server is being stopped") from error
        except Exception as error:
            if (told := _told(error)) is None:
                raise
            raise told from error
        finally:
            # A thread can't be stopped: its place is free when it ends.
            if work is None:
                self.free.release()
            else:
                work.add_done_callback(lambda _: self.free.release())

    def _answer(self, model: int, example: int | None, content: bytes) -> dict[str, Any]:
        if example is not None and self.examples:
            name = self.examples.shown[example].image
            return self.models.answer(model, self.examples.content(example), name)
        return self.models.answer(model, content)


def app(demo: Demo, started: Callable[[], None]) -> Starlette:
    """The server's application; it calls `started` when it serves, and loads the first model then."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        started()
        demo.pool.submit(demo.models.get, 0)  # its error is told to whoever asks first
        yield
        demo.pool.shutdown(wait=False, cancel_futures=True)

    routes = [
        Route("/", demo.page),
        Route("/labels", demo.labels, methods=["POST"]),
        *(Route(f"/{name}", _file(name, kind)) for name, kind in FILES.items()),
    ]
    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refusal, Exception: _failure}
    )


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    content = (HERE / name).read_bytes()
    return lambda request: Response(content, media_type=kind)


def _number(request: Request, name: str, count: int) -> int:
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) < count):
        raise HTTPException(404, f"{name} is {text[:40]!r}; expected a whole number below {count}")
    return int(text)


async def _body(request: Request) -> bytes:
    """The body of a request, of which no more is read than may be sent."""
    too_large = HTTPException(413, f"the photograph is too large; expected at most {MAX_BYTES // 10**6} MB")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise too_large
    return bytes(content)


def _told(error: Exception) -> HTTPException | None:
    """An error that is the photograph's, the user's or the system's fault, as a line for the page."""
    match error:
        case DecodeError():
            return HTTPException(422, f"{error}; {KNOWN}" if str(error) == UNKNOWN else str(error))
        case ClientDisconnect():
            return HTTPException(400, "the connection was closed")
        case TimeoutError():
            return HTTPException(
                504, f"no answer within {MAX_SECONDS} seconds; try a smaller photograph, or again later"
            )
        case MemoryError():
            return HTTPException(503, "the server is out of memory; try a smaller photograph, or again later")
        case UserError():
            line = str(error)
        case OSError() if is_system_fault(error):
            line = f"the server's system reports '{error.strerror}'"
        case _:
            return None
    print_traceback()
    print(f"demo: error: {printable(line)}", file=sys.stderr)
    return HTTPException(500, line)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _failure(request: Request, error: Exception) -> Response:
    # Starlette raises the error again, so that the server shows its traceback in the terminal.
    return JSONResponse({"error": "the server failed; its terminal says why"}, 500)
