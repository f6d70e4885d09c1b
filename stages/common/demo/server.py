"""The page on an address of this machine, until it is stopped."""

import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import webbrowser

import uvicorn

from stages.common.demo.app import Demo, app
from stages.common.demo.guard import Guard, host_check, security_headers
from stages.common.demo.models import Models, choices
from stages.common.runtime.errors import UserError

MAX_CONNECTIONS = 64  # at a time; browsers open up to six
GRACE = 10  # seconds for what is being answered when the server is stopped


def serve(model: str | None, host: str, port: int, browser: bool) -> None:
    """Serve the page.

    Args:
        model: by name or file, the first of those on the page; by default that of params.yaml.
        host: name or address of the interface.
        port: 0 is one that is free.
        browser: whether to open the page in one.

    Raises:
        UserError: no such model, or an address that can't be used.
    """
    models = Models(choices(model))
    with _listening(host, port) as listening:
        address, port = listening.getsockname()[:2]
        loopback = ipaddress.ip_address(address).is_loopback
        url = _url(host, address, port)

        def started() -> None:
            if not loopback:
                print("demo: anybody who can reach this machine over the network can use it", flush=True)
            print(f"demo: {url} (Ctrl-C ends it)", flush=True)
            if browser and _has_display():
                # Some browsers return when they are closed.
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        demo = Demo(models)
        guarded = Guard(app(demo, started), host_check(host, loopback), security_headers(demo.styles()))
        server = uvicorn.Server(
            uvicorn.Config(
                guarded,
                http="h11",
                loop="asyncio",
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=GRACE,
            )
        )
        _end_quietly()
        server.run(sockets=[listening])


def _end_quietly() -> None:
    """Let the signals that Uvicorn handles, and raises again when it has ended, end the process, and SIGHUP be one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores the closing of the terminal
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UserError(
            f"--host is {host!r}: {error.strerror}; expected a name or an address of this machine"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port is {port}, which is in use; name another one, or 0 for any that is free"
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"--host is {host!r}, --port {port}: {reason}; expected an address of this machine") from error


def _url(host: str, address: str, port: int) -> str:
    if ipaddress.ip_address(address).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _has_display() -> bool:
    # Without one, a browser in the terminal would hide the address.
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
