"""Who may use the page, and what the browser may do with it."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def security_headers(styles: str) -> dict[str, str]:
    """The headers of every answer.

    Args:
        styles: the sources of the content security policy from which the page may take styles.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": styles,
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def host_check(asked: str, loopback: bool) -> Callable[[str], bool]:
    """Whether a Host header names this server. Any other name may be that of a foreign page whose DNS entry leads here.

    Args:
        asked: the host that the user asked for.
        loopback: whether it is reachable from this machine alone. If not, any address is allowed, as no page of another
            name can have it, and the machine's name.
    """
    names = LOOPBACK | {asked.lower()}
    if not loopback:
        names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    def check(header: str) -> bool:
        name = _without_port(header.lower())
        return name in names or (not loopback and _is_address(name))

    return check


def _without_port(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Refuses requests to another host, and those of foreign pages that would make it work; adds headers to all answers."""

    def __init__(self, app: ASGIApp, allowed: Callable[[str], bool], headers: dict[str, str]) -> None:
        self.app, self.allowed, self.headers = app, allowed, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        app = self.app if (reason := self._reason(scope)) is None else JSONResponse({"error": reason}, 403)
        await app(scope, receive, self._with_headers(send))

    def _reason(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.allowed(host):
            return f"this server is not {host!r}; open the address that it printed"
        # Browsers name the page that a POST comes from; other programs, which no foreign page can start, do not.
        if scope["method"] != "GET" and headers.get("origin", f"http://{host}") != f"http://{host}":
            return "a page from elsewhere may not use this server"
        return None

    def _with_headers(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        return answer
