"""One serving process: its listening socket, the application, the server.

`cli/serve.py` decides whether it is the only one or one of several.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from on_api.core.errors import StartupError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from on_api.core.settings import Settings
    from on_api.server.protocol import FramedHttp

GRACE_SECONDS = 30
"""Seconds that transfers under way may go on after Ctrl-C."""
BACKLOG = 2048


def open_listeners(settings: Settings, processes: int) -> list[socket.socket]:
    """Open a listening socket for each process, all at one address. Raises `StartupError`, which
    names the cure.

    On Linux each has its own queue, and the kernel distributes connections: with one shared socket,
    the first process to wake would accept all that have come. Elsewhere one socket is shared.
    """
    first = _listen(settings, shared=False)
    if processes == 1 or sys.platform != "linux":
        return [first] * processes
    # Only now, when no other program is known to listen there: with `SO_REUSEPORT` two programs of
    # one user would silently take each other's connections.
    first.close()
    opened: list[socket.socket] = []
    try:
        for _ in range(processes):
            opened.append(_listen(settings, shared=True))
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


def build_server(app: ASGIApp, protocol: type[FramedHttp]) -> uvicorn.Server:
    """Build the server of an application, on the fastest event loop and parser (uvloop,
    httptools)."""
    import uvicorn

    from on_api.server.quiet import QuietServer

    return QuietServer(
        uvicorn.Config(
            app,
            http=protocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            # create_app decides which proxies are trusted, by ON_API_TRUSTED_PROXIES.
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def run_server(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until a signal ends it. Raises `StartupError` if the server could not start."""
    # uvicorn has ended everything by then; it raises the signal once more for its caller.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        raise StartupError("The API could not start; see the log above for the reason.")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse, instead of returning it to the system and asking for
    zeroed pages again (mallopt(3)). All threads use one arena, since each arena keeps its own freed
    memory. Does nothing with other C libraries."""
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(trim_threshold, 256 * 1024 * 1024)
    mallopt(top_pad, 16 * 1024 * 1024)
    mallopt(mmap_threshold, 64 * 1024 * 1024)
    mallopt(arena_max, 1)


def _listen(settings: Settings, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Connections queue from here on, though they are accepted only when all is up: a second
        # start fails now, not later.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            cure = "set ON_API_HOST to an address of this machine."
        else:
            cure = (
                "stop the program that uses it, or choose another port with ON_API_PORT (make run"
                " PORT=…)."
            )
        raise StartupError(
            f"Can't listen on {settings.host} port {settings.port} ({error.strerror}): {cure}"
        ) from None
    return listener
