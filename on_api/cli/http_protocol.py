"""The server's HTTP protocol: with a bound on what comes before (and after) a request's body, and
a way to write an answer that was put together before.

uvicorn and its parser gather request line, headers and trailers of any size in memory, before the
application is asked; and it looks at every header of every answer anew, which takes longer than all
that the gateway does for an answer from memory. Knows nothing of what is asked.
"""

from __future__ import annotations

from functools import partial
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from on_api.public.gateway_answers import WRITE_WHOLE

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers; of trailers."""

_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"The request's headers are too large."
)


class HeadTooLarge(Exception):
    """Ends the parsing of a request."""


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 to a request whose head is over `MAX_HEAD_BYTES`."""

    _gathered = 0
    """Bytes received since the parser last finished a head, a piece of a body or a message."""
    _moved = False
    _too_large = False

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless all that it does is gather."""
        self._moved = False
        super().data_received(data)
        self._gathered = 0 if self._moved else self._gathered + len(data)
        if self._gathered > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """A head is whole; one that came in a single piece was not counted yet."""
        self._moved = True
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._too_large = True
            raise HeadTooLarge
        super().on_headers_complete()
        extended = cast("dict[str, object]", self.scope)
        extended[WRITE_WHOLE] = partial(_write_whole, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._moved = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, and to what ends the parsing."""
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self.logger.warning("refused a request whose headers are too large")
        self.transport.write(_REFUSAL)
        self.transport.close()


def _write_whole(cycle: RequestResponseCycle, head: bytes, body: bytes) -> bool:
    """Answer with a status line and headers as they go over the wire, and with the body whose
    length they tell. False when it has to go the usual way: the client is slow, or gone."""
    if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    last = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    common = [part for n, v in cycle.default_headers for part in (n, b": ", v, b"\r\n")]
    cycle.transport.write(b"".join([head, *common, last, body]))
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True
