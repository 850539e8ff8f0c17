"""HTTP/1.1 client for the node's gateway, written by hand since with a general client a small
answer takes twice the time (ADR 0018).

For GET, HEAD and RPC calls that only read, which may safely be sent twice. Connections are kept.
Knows nothing of IPFS.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from pathlib import Path
from urllib.parse import urlsplit

from on_api.core.errors import NodeError, NodeTimeout, NodeTruncated, NodeUnavailable
from on_api.core.ipfs.gateway_client.connection import (
    Connection,
    NodeAnswer,
    OutcomeCallback,
    Stale,
)
from on_api.core.setting_groups import IpfsSettings

MAX_IDLE_CONNECTIONS = 64
"""Number of idle connections kept for later requests. Open ones are as many as there are
requests."""
IDLE_SECONDS = 15.0
LOOK_SECONDS = 1.0
"""Seconds between two checks of the deadlines: a timer for each answer would cost more than the
answer."""

_TARGET = re.compile(r"[!-~]+")
_BREAKS = re.compile(rb"[\r\n\x00]")


class NodeHttp:
    """Pool of connections to one origin. Bound to the event loop of its first call."""

    def __init__(
        self,
        origin: str,
        limits: IpfsSettings,
        socket: Path | None = None,
        host: str | None = None,
    ) -> None:
        """Create a pool. `socket` is a Unix socket at which the origin may listen as well; if it
        doesn't, its port is used. `host` replaces the origin's own in the header Host."""
        parts = urlsplit(origin)
        self._prefix = parts.path
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._lines = f" HTTP/1.1\r\nHost: {host or parts.netloc}\r\n".encode()
        self._limits = limits
        self._socket = socket
        self._look = min(LOOK_SECONDS, limits.stall_timeout / 8)
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._clock: asyncio.TimerHandle | None = None
        self._preparing: asyncio.Task[None] | None = None

    async def ask(
        self, method: str, target: str, headers: Sequence[tuple[str, str]] = ()
    ) -> NodeAnswer:
        """Request a target: a path with its query, percent-encoded. Redirects are not followed.

        Raises `NodeUnavailable`, `NodeTimeout` after `stall_timeout` seconds without an answer,
        `NodeTruncated` when the connection ends before it, `NodeError` for one that is not HTTP.
        """
        request = self._written(method, target, headers)
        is_head = method == "HEAD"
        connection = self._kept()
        if connection is not None:
            try:
                return await connection.exchange(request, is_head)
            except Stale:
                pass  # it had been closed before the node saw the request: retry
        connection = await self._connect()
        return await connection.exchange(request, is_head)

    def ask_at_once(
        self, target: str, headers: Sequence[tuple[str, str]], callback: OutcomeCallback
    ) -> bool:
        """GET a target over an idle connection, if there is one. `callback` is called once, later,
        with the outcome; `Stale` means that the caller has to retry. Returns False if no connection
        is idle; then use `ask`.

        Raises `NodeError` for a target or a header that can't be sent.
        """
        request = self._written("GET", target, headers)
        connection = self._kept()
        if connection is None:
            return False
        connection.begin(request, False, callback)
        return True

    def prepare(self) -> None:
        """Open a connection for the next `ask_at_once`, in the background, one at a time."""
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(), context=Context())

    async def _prepare(self) -> None:
        try:
            connection = await self._connect()
            connection.free_since = asyncio.get_running_loop().time()
            if not self.keep(connection):
                connection.fail(NodeTruncated())
        except NodeError:
            pass  # the next request will raise it
        finally:
            self._preparing = None

    async def close(self) -> None:
        """Close every connection."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        for connection in [*self._idle, *self._busy]:
            connection.fail(NodeTruncated())
        self._idle.clear()

    def _written(self, method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
        if _TARGET.fullmatch(target) is None:
            raise NodeError("This request can't be sent to the IPFS node.")
        lines = [f"{method} {self._prefix}{target}".encode("ascii"), self._lines]
        for name, value in headers:
            line = f"{name}: {value}".encode()
            if _BREAKS.search(line) is not None:
                raise NodeError("This request can't be sent to the IPFS node.")
            lines += (line, b"\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the one used last is the likeliest to be alive
            if connection.is_open:
                self._busy.add(connection)
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(self, loop, self._limits.stall_timeout)

        context = ssl.create_default_context() if self._tls else None
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                connection = await self._connect_by_socket(make)
                if connection is None:
                    _, connection = await loop.create_connection(
                        make, self._host, self._port, ssl=context
                    )
        except TimeoutError as error:
            raise NodeTimeout from error
        except OSError as error:
            raise NodeUnavailable from error
        self._busy.add(connection)
        if self._clock is None:
            self._clock = loop.call_later(self._look, self._look_at_the_clock, loop)
        return connection

    async def _connect_by_socket(self, make: Callable[[], Connection]) -> Connection | None:
        if self._socket is None:
            return None
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(make, str(self._socket))
        except OSError:
            return None  # the node was started without it, or is down
        return connection

    # Called by connections.

    def keep(self, connection: Connection) -> bool:
        """Take back a free connection. Returns False if it isn't needed."""
        self._busy.discard(connection)
        if self._clock is None or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            return False
        self._idle.append(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        self._busy.discard(connection)

    def _look_at_the_clock(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [c for c in self._busy if c.is_late(now)]:
            connection.fail(NodeTimeout())
        while self._idle and self._idle[0].free_since < now - IDLE_SECONDS:
            self._idle.popleft().fail(NodeTruncated())
        self._clock = None
        if self._idle or self._busy:
            self._clock = loop.call_later(self._look, self._look_at_the_clock, loop)
