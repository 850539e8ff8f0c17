"""One serving process: the listening socket that it is given, the application, the server.

Whether it is the only one or one of several is decided in `serve.py`.
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
"""How long transfers under way may go on after Ctrl-C."""
BACKLOG = 2048


def open_listeners(settings: Settings, processes: int) -> list[socket.socket]:
    """A listening socket for each process, all at one address. Raises `StartupError` with the
    cure.

    On Linux each has a queue of its own, and the kernel deals out connections: of one socket that
    all share, whoever wakes first takes all that have come. Elsewhere they do share one.
    """
    first = _listen(settings, shared=False)
    if processes == 1 or sys.platform != "linux":
        return [first] * processes
    # Only now, when it is known that nobody else listens there: with `SO_REUSEPORT` two programs
    # of one user would take each other's connections without a word.
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
    """The server of an application, on the event loop and parser that are the fastest there are
    (uvloop, httptools)."""
    import uvicorn

    from on_api.server.quiet import QuietServer

    return QuietServer(
        uvicorn.Config(
            app,
            http=protocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            # create_app decides whom to believe, by ON_API_TRUSTED_PROXIES.
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def run_server(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until a signal ends it. Raises `StartupError` when it could not start."""
    # uvicorn has ended everything by then; it raises the signal once more for whoever waits.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        raise StartupError("The API could not start; the log above says why.")


def keep_freed_memory() -> None:
    """Let glibc keep what streams free and take again, instead of giving it back to the system and
    asking for zeroed pages each time (mallopt(3)); all threads out of one heap, since each one
    keeps what it once had. Elsewhere nothing."""
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
        # Taken from here on, though answered only when all is up: a second start fails now, not
        # later.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            cure = "set ON_API_HOST to an address of this machine."
        else:
            cure = "stop what uses it, or choose another with ON_API_PORT (make run PORT=…)."
        raise StartupError(
            f"Can't serve on {settings.host} port {settings.port} ({error.strerror}): {cure}"
        ) from None
    return listener
