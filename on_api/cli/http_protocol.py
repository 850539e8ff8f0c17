"""The server's HTTP protocol: with a bound on what comes before (and after) a request's body, a way
to take a large body without copies, and one to write an answer that was put together before.

uvicorn and its parser gather request line, headers and trailers of any size in memory, before the
application is asked; and it looks at every header of every answer anew, which takes longer than all
that the gateway does for an answer from memory. Knows nothing of what is asked.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from on_api.cli.large_bodies import LARGE_BYTES, LargeBody
from on_api.core.request_bodies import TAKE_BODY
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
    _before = 0
    """Bytes that came at once when it last did: some of them may begin the next head."""
    _arrived = 0
    """Bytes of which the present head can be at most."""
    _moved = False
    _too_large = False
    _length = 0
    """Of a body, where its head tells."""
    _received = 0
    """Of a body, as the parser has given it out."""
    _unwanted = 0
    """Of a body that was given up, what is still to come."""
    _body: LargeBody | None = None
    """Receives in our place now."""

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless all that it does is gather."""
        if self._unwanted:
            unwanted, self._unwanted = self._unwanted, max(0, self._unwanted - len(data))
            if not (data := data[unwanted:]):
                return
        self._moved = False
        self._arrived = self._before + self._gathered + len(data)
        super().data_received(data)
        if self._moved:
            self._gathered, self._before = 0, len(data)
        else:
            self._gathered += len(data)
        if self._gathered > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """A head is whole; one that came in a single piece was not counted yet."""
        self._moved = True
        if self._arrived > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large = True
                raise HeadTooLarge
        before: RequestResponseCycle | None = self.cycle
        super().on_headers_complete()
        extended = cast("dict[str, object]", self.scope)
        extended[WRITE_WHOLE] = partial(_write_whole, self.cycle)
        self._length, self._received = _content_length(self.headers), 0
        # Not of a request that waits for the answer to another one, nor of what is no request.
        is_next = self.cycle is not before and (before is None or before.response_complete)
        if self._length > LARGE_BYTES and is_next:
            extended[TAKE_BODY] = partial(LargeBody, self, self.cycle, self._left)

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._moved = True
        self._received += len(body)
        super().on_body(body)

    def body_begins(self, body: LargeBody) -> None:
        """See `TakesBack`."""
        self._body = body

    def body_ends(self, unread: int) -> None:
        """See `TakesBack`. The parser, which waits for the body, is replaced."""
        self._body = None
        self._unwanted = unread
        self._gathered = self._before = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's is
        if not unread:
            self.on_message_complete()
        self.transport.set_protocol(self)
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """An answer is over, maybe before the body that it answers."""
        if self._body is not None:
            self._body.give_back()
        super().on_response_complete()

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

    def _left(self) -> int:
        return self._length - self._received

    def _refuse(self) -> None:
        self.logger.warning("refused a request whose headers are too large")
        self.transport.write(_REFUSAL)
        self.transport.close()


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    """0 where it isn't told. The parser has refused what tells it twice, or otherwise too."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


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
