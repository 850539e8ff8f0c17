"""Answers to HTTP/1.0, which knows no chunks (RFC 9112, 6.1): an answer without a length ends with
its connection. One that is cut ends with a reset, since a client would take any other end for the
answer's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_BODILESS = {204, 304}


class EndsWithConnection:
    """Replacement for a cycle's `send`. uvicorn checks an answer's length against the announced
    one; for an answer without one, the length of each piece is announced before it is sent."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send: Callable[..., Awaitable[None]] = cycle.send
        self._has_length = True

    @property
    def is_cut(self) -> bool:
        """True if the answer is incomplete and the client couldn't tell."""
        cycle = self._cycle
        return not self._has_length and cycle.response_started and not cycle.response_complete

    async def send(self, message: Message) -> None:
        """Implement ASGI's `send`."""
        cycle = self._cycle
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            self._has_length = b"content-length" in names or message["status"] in _BODILESS
            if not self._has_length:
                cycle.chunked_encoding = cycle.keep_alive = False
        elif not self._has_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)
