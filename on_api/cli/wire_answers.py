"""Answers whose head and body were put together before, written past uvicorn's own way: it looks at
every header of every answer anew. Keeps what it has to know: that a request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

_NOBODY_WAITS = asyncio.Event()


class Connection(Protocol):
    """Where a request came from."""

    transport: asyncio.Transport
    server_state: ServerState

    def on_response_complete(self) -> None:
        """The answer has been written."""


class TaskLess:
    """Stands for the cycle of a request that is answered by a call, in no task: for uvicorn, which
    keeps requests behind it waiting and ends in order."""

    def __init__(self, http: Connection) -> None:
        self._http = http
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the answer; nothing when the client is gone."""
        self.response_complete = True
        http = self._http
        if self.disconnected or http.transport.is_closing():
            return
        lines = b"".join([b"%s: %s\r\n" % header for header in headers])
        common = common_lines(http.server_state.default_headers)
        last = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        http.transport.write(b"".join((STATUS_LINE[status], common, lines, last, body)))
        if not self.keep_alive:
            http.transport.close()
        http.on_response_complete()


def write_whole(cycle: RequestResponseCycle, head: bytes, body: bytes) -> bool:
    """Answer with a status line and headers as they go over the wire, and with the body whose
    length they tell. False when it has to go the usual way: the client is slow, or gone."""
    if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    last = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    cycle.transport.write(b"".join([head, common_lines(cycle.default_headers), last, body]))
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


class _Lines:
    """Headers as they go over the wire: the same list for a second, and thousands of answers."""

    headers: list[tuple[bytes, bytes]] | None = None
    text = b""


def common_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """uvicorn's own headers of every answer, as they go over the wire."""
    if _Lines.headers is not headers:
        text = b"".join(b"%s: %s\r\n" % header for header in headers)
        _Lines.headers, _Lines.text = headers, text
    return _Lines.text
