"""The server's HTTP protocol: with a bound on what comes before (and after) a request's body, a way
to take a large body without copies, and two to give an answer that was put together before: at
once, or when the application says so.

uvicorn and its parser gather request line, headers and trailers of any size in memory, before the
application is asked. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from on_api.cli.large_bodies import LARGE_BYTES, LargeBody
from on_api.cli.receiver import Receiver
from on_api.cli.wire_answers import common_lines, write_whole
from on_api.core.request_bodies import TAKE_BODY
from on_api.public.gateway_answers import WRITE_WHOLE
from on_api.public.gateway_request import ASKED, Said

if TYPE_CHECKING:
    from on_api.main import Application

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers; of trailers."""

JOINED_BYTES = 64 * 1024
"""A body that is not over this goes out in one piece with its head."""
_UNUSUAL = frozenset({b"content-length", b"expect", b"transfer-encoding"})
"""What tells of a body that is to come."""

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
    _quick = False
    """The present request was answered at once."""
    _may_be_quick = False
    """At most one answer for what came together: whoever asks for many has to take them in."""
    _length = 0
    """Of a body, where its head tells."""
    _received = 0
    """Of a body, as the parser has given it out."""
    _unwanted = 0
    """Of a body that was given up, what is still to come."""
    _body: LargeBody | None = None
    """Receives in our place now."""
    _piece: bytes | memoryview = b""
    """What is being received."""
    _waits = False
    """The present request waits for an answer of which there is neither scope nor task."""
    _held = b""
    """What came meanwhile."""
    _is_last = False
    """That answer is the connection's last one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._receiver = Receiver(self)
        transport.set_protocol(self._receiver)

    def is_under_way(self) -> bool:
        """Whether a request has come that is not answered: what comes now is likely its body."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def data_received(self, data: bytes | memoryview) -> None:
        """Feed the parser, unless all that it does is gather. Keeps nothing of `data`."""
        if self._unwanted:
            unwanted, self._unwanted = self._unwanted, max(0, self._unwanted - len(data))
            if not (data := data[unwanted:]):
                return
        if self._waits:
            self._held += data
            self.flow.pause_reading()
            return
        self._piece = data
        self._moved = False
        self._may_be_quick = True
        self._arrived = self._before + self._gathered + len(data)
        super().data_received(cast(bytes, data))  # any buffer does as well
        self._piece = b""
        if self._moved:
            self._gathered, self._before = 0, len(data)
        else:
            self._gathered += len(data)
        if self._gathered > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A request begins. Its scope is made when it is known that one is needed."""
        if self._waits:
            raise ValueError("another request, though there was nothing behind the present one")
        self._quick = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """A head is whole; one that came in a single piece was not counted yet."""
        self._moved = True
        if self._arrived > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large = True
                raise HeadTooLarge
        if self._may_be_quick:
            self._may_be_quick = False
            if self._is_usual() and self._answer_at_once():
                return
        self._begin_usually()

    def _begin_usually(self) -> None:
        """Make scope, cycle and task for the request whose head is whole."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        before: RequestResponseCycle | None = self.cycle
        super().on_headers_complete()
        extended = cast("dict[str, object]", self.scope)
        extended[WRITE_WHOLE] = partial(write_whole, self.cycle)
        self._length, self._received = _content_length(self.headers), 0
        # Not of a request that waits for the answer to another one, nor of what is no request.
        is_next = self.cycle is not before and (before is None or before.response_complete)
        if self._length > LARGE_BYTES and is_next:
            extended[TAKE_BODY] = partial(LargeBody, self, self.cycle, self._left)
            self.flow.pause_reading()  # until somebody wants it

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._moved = True
        if self._quick:
            return  # none was announced
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
        self.transport.set_protocol(self._receiver)
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """An answer is over, maybe before the body that it answers."""
        if self._body is not None:
            self._body.give_back()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._moved = True
        if not self._quick:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, and to what ends the parsing."""
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _is_usual(self) -> bool:
        """Whether nothing is unusual about the connection and how the request came."""
        parser = self.parser
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return not (
            (cycle is not None and not cycle.response_complete)
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            or self.flow.write_paused
            or self.transport.is_closing()
            or self.root_path
        )

    def _answer_at_once(self) -> bool:
        """Answer without a task, if the application knows the answer already."""
        if self.parser.get_method() != b"GET":
            return False
        for name, _ in self.headers:
            if name in _UNUSUAL:
                return False
        ask = getattr(self.app, "quick_answer", None)
        if ask is None:
            return False
        answer = ask(self.url, self.headers)
        if answer is not None:
            head, body = answer
            self._quick = True
            self._write(head, body, b"\r\n")
            self.on_response_complete()
            return True
        # An answer that comes later needs this one request to be all there is to parse.
        piece = bytes(self._piece)
        if piece.find(b"\r\n\r\n") != len(piece) - 4:
            return False
        self._quick = self._waits = cast("Application", self.app).quick_relay(
            self.url, self.headers, self
        )
        return self._quick

    # For an answer that comes later, see `Client`.

    @property
    def is_gone(self) -> bool:
        """Whether the client has gone, or was sent away."""
        return self.transport.is_closing()

    @property
    def is_ready(self) -> bool:
        """Whether the client takes in what it is sent."""
        return not self.flow.write_paused

    def give(self, head: bytes, body: bytes) -> None:
        """Answer the request that waits."""
        self._waits = False
        self._write(head, body, b"connection: close\r\n\r\n" if self._is_last else b"\r\n")
        if self._is_last:
            self.transport.close()
        self.on_response_complete()
        self._take_held()

    def go_the_usual_way(self, said: Said | None) -> None:
        """Have the application serve the request that waits. The parser stands behind it."""
        self._waits = self._quick = False
        self._begin_usually()
        cast("dict[str, object]", self.scope)[ASKED] = said
        self.on_message_complete()
        if self._is_last:
            super().shutdown()
        self._take_held()

    def shutdown(self) -> None:
        """The server ends: with the request under way, if there is one."""
        if self._waits:
            self._is_last = True
        else:
            super().shutdown()

    def _take_held(self) -> None:
        held, self._held = self._held, b""
        if held and not self.transport.is_closing():
            self.flow.resume_reading()
            self.data_received(held)

    def _write(self, head: bytes, body: bytes, last: bytes) -> None:
        common = common_lines(self.server_state.default_headers)
        if len(body) <= JOINED_BYTES:
            self.transport.write(b"".join((head, common, last, body)))
        else:
            self.transport.writelines((head, common, last, body))

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
