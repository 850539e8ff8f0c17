"""Receives for the HTTP protocol, into a buffer that all connections of an event loop share.

What a request's head says isn't known before some of its body has come: so little is received at
first, or 500 uploads at once would have 30 MiB in memory before anybody has asked for them.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

FIRST_BYTES = 16 * 1024
"""Received at once when a request begins: of a large body hardly more than that comes before it is
known where it goes."""
NEXT_BYTES = 256 * 1024
"""Received at once of a body that goes through the parser."""


class Fed(Protocol):
    """Who is given what comes, and told all that a protocol is told."""

    def is_under_way(self) -> bool:
        """Whether what comes now is likely the body of a request."""

    def data_received(self, data: memoryview) -> None:
        """Take a piece; nothing of it may be kept."""

    def eof_received(self) -> bool:
        """Say whether the connection stays open for what is still to be said."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""


class _Buffers(threading.local):
    """A thread's, and so an event loop's: another loop receives while this one's piece is parsed.
    With one for both, each would be given the other's requests."""

    def __init__(self) -> None:
        self.first = memoryview(bytearray(FIRST_BYTES))
        self.next = memoryview(bytearray(NEXT_BYTES))


_buffers = _Buffers()


class Receiver(asyncio.BufferedProtocol):
    """Receives for a `FramedHttp`, which is no `BufferedProtocol` since uvicorn's isn't: into one
    buffer that all of a loop share, as each piece is parsed before the next one comes. To be made
    on the loop's thread."""

    def __init__(self, http: Fed) -> None:
        self._http = http
        self._first, self._next = _buffers.first, _buffers.next
        self._buffer = self._first
        self.eof_received = http.eof_received  # type: ignore[method-assign]
        self.connection_lost = http.connection_lost  # type: ignore[method-assign]
        self.pause_writing = http.pause_writing  # type: ignore[method-assign]
        self.resume_writing = http.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        self._buffer = self._next if self._http.is_under_way() else self._first
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self._http.data_received(self._buffer[:nbytes])
