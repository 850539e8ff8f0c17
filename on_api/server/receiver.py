"""Receiving end of the HTTP protocol, with buffers that all connections of an event loop share.

A request's head is only known once some of its body may have come. So little is received at first:
otherwise 500 uploads at once would put 30 MiB into memory before the application asks for them.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

FIRST_BYTES = 16 * 1024
"""Bytes received at once when a request begins: hardly more of a large body comes before it is
known where that goes."""
NEXT_BYTES = 256 * 1024
"""Bytes received at once of a body that goes through the parser."""


class Fed(Protocol):
    """The protocol that gets the received data and the other events of `asyncio.Protocol`."""

    def is_under_way(self) -> bool:
        """Return whether the next bytes are likely part of a request's body."""

    def data_received(self, data: memoryview) -> None:
        """Process a piece. The buffer is reused, so no reference to it may be kept."""

    def eof_received(self) -> bool:
        """Return whether the connection stays open for answers that are still due."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`."""

    def pause_writing(self) -> None:
        """Implement `asyncio.BaseProtocol`."""

    def resume_writing(self) -> None:
        """Implement `asyncio.BaseProtocol`."""


class _Buffers(threading.local):
    """Buffers of a thread, and so of an event loop. With one pair for all threads, one loop would
    receive into the buffer that another is parsing, and get its requests."""

    def __init__(self) -> None:
        self.first = memoryview(bytearray(FIRST_BYTES))
        self.next = memoryview(bytearray(NEXT_BYTES))


_buffers = _Buffers()


class Receiver(asyncio.BufferedProtocol):
    """Buffered receiver for a `FramedHttp`, which is no `BufferedProtocol` since uvicorn's class
    isn't. All connections of a loop can share the buffers, as each piece is parsed before the next
    one comes. Must be created on the loop's thread."""

    def __init__(self, http: Fed) -> None:
        self._http = http
        self._first, self._next = _buffers.first, _buffers.next
        self._buffer = self._first
        self.eof_received = http.eof_received  # type: ignore[method-assign]
        self.connection_lost = http.connection_lost  # type: ignore[method-assign]
        self.pause_writing = http.pause_writing  # type: ignore[method-assign]
        self.resume_writing = http.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`."""
        self._buffer = self._next if self._http.is_under_way() else self._first
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`."""
        self._http.data_received(self._buffer[:nbytes])
