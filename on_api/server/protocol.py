"""The server's HTTP protocol as far as it decides where a request begins and ends: one request at a
time is handed to the parser, after its head was examined by the rules of `framing.py`.

Always on, whatever other ways there are to answer. Bounds what is gathered before the application
is asked; answers what is no request; hears a client out before the connection is closed. Knows
nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from on_api.core.errors import BadRequest, OnApiError, RequestTimeout, ServiceUnavailable
from on_api.server.chunked import ChunkedBody
from on_api.server.framing import (
    CHUNKED,
    END,
    MAX_HEAD_BYTES,
    check_beginning,
    check_size,
    path_in,
    path_of,
    read_head,
)
from on_api.server.http_1_0 import EndsWithConnection
from on_api.server.lingering import LINGER_BYTES, UNKNOWN_BYTES, LingeringTransport
from on_api.server.patience import Patience
from on_api.server.receiver import Receiver
from on_api.server.served import Served
from on_api.server.wire import refusal

logger = logging.getLogger(__name__)

PASSED_OVER_BYTES = 8 * 1024 * 1024
"""Bytes of an unwanted body that are read and dropped, so that the connection goes on.
An answer that begins while more of its request's body is to come, or nobody knows how much, is the
connection's last one, and says so."""
HALF_CLOSED_SECONDS = 10.0
"""For an answer to begin, to a request without a body whose client sends no more: such a client may
well be gone, and nothing but an answer tells that."""


class FramedHttp(HttpToolsProtocol):
    """Hands the parser one request at a time, and keeps what comes behind it until it is
    answered."""

    _gathered: bytearray
    """The beginning of a head."""
    _held = b""
    """Bytes received behind the present request."""
    _left = 0
    """Bytes of the present body that are still to come, or `CHUNKED`."""
    _is_passed_over = False
    """They are kept from the parser, which begins anew behind them."""
    _chunks: ChunkedBody
    """The present body, if it is chunked."""
    _may_begin = False
    """A head was examined that the parser hasn't had."""
    _in_body = False
    """The parser has had a head, and not all of the request."""
    _is_whole = False
    """The parser has had all of the present request."""
    _has_moved = False
    """Since it was last fed, it has given out some of a body."""
    _kept: RequestResponseCycle | None = None
    """The present request's, if its answer is to end the connection unless all has come by then."""
    _requests = 0
    """The present one's number."""
    _begun = 0
    """The number of the one whose head came last in pieces."""
    _awaited = 0
    """The last one whose answer was waited for though its client sends no more."""
    _has_body = False
    """The present request has one."""
    _ends: EndsWithConnection | None = None
    """Of the present answer, if it is one to HTTP/1.0."""
    _is_taking = False
    """What was held is being taken."""
    _has_refused = False
    _hears_no_more = False
    """The client has closed its side."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        self._gathered = bytearray()
        self._lingering = LingeringTransport(transport, self)
        super().connection_made(self._lingering)
        self._receiver = Receiver(self)
        transport.set_protocol(self._receiver)
        limits = cast("Served", self.app).connection_limits
        self._patience = Patience.of(self.server_state, limits, self.loop)
        if not self._patience.admit(self, self._lingering, self.client and self.client[0]):
            self._end_with(ServiceUnavailable("Too many connections.", retry_after=1), "")

    def is_under_way(self) -> bool:
        """Whether what comes now is likely the body of a request."""
        return self._left != 0

    def data_received(self, data: bytes | memoryview) -> None:
        """Take what has come, or keep it until the request before it is answered."""
        if not self._held:
            self._take(data)
        elif not self.transport.is_closing():
            self._hold(bytes(data))

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """The client sends no more; it is answered what it has asked."""
        self._hears_no_more = True
        self._end_hearing()
        return not self.transport.is_closing()

    def is_busy(self) -> bool:
        """Whether a request is not answered yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def has_begun_to_answer(self) -> bool:
        """Whether the present answer is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and cycle.response_started

    def awaited_head(self) -> int:
        """See `Watched`. The first one counts as begun: else nobody would connect. While some of a
        body is passed over, each piece of it begins the wait anew."""
        if self.is_busy() or self.transport.is_closing():
            return 0
        following = self._requests + 1
        if following in {1, self._begun}:
            return following
        return -(following + max(self._left, 0))

    def head_is_late(self) -> None:
        """See `Watched`."""
        if self._gathered:
            self._refuse_head(
                RequestTimeout("The request's head has no end."), bytes(self._gathered)
            )
        else:
            self.transport.close()

    def unheard(self) -> int:
        """See `Owner`."""
        if self._hears_no_more:
            return 0
        if self._left > 0 and not self._has_refused:
            return LINGER_BYTES
        is_behind = self._left or self._held or self._gathered or self._has_refused
        return UNKNOWN_BYTES if is_behind else 0

    def is_cut(self) -> bool:
        """See `Owner`."""
        return self._ends is not None and self._ends.is_cut

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was sent away."""
        self._hears_no_more = True
        self._held = b""
        self._gathered.clear()
        self._patience.forget(self)
        super().connection_lost(exc)

    def begin_with(self, head: bytes) -> None:
        """Hand the parser a whole head, unless it is refused: `begin` follows."""
        self._is_whole = False
        try:
            read, self._left = read_head(head)
            self._has_body = self._left != 0
            if self._left == CHUNKED:
                self._chunks = ChunkedBody()
            self._may_begin = True
            is_taken = self._feed(read) and (self._in_body if self._left else self._is_whole)
            if not is_taken:
                raise BadRequest("The request's head is malformed.")
        except OnApiError as error:
            self._in_body = False
            self._refuse_head(error, head)

    # What the parser says.

    def on_message_begin(self) -> None:
        """A request begins. Its scope is made when it is known that one is needed."""
        if not self._may_begin:
            raise ValueError("a request whose head nobody has seen")
        self._may_begin = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; a trailer is none, and is dropped: it would pass what was asked before."""
        if self._in_body:
            return
        name, value = name.lower(), value.rstrip(b" \t")  # RFC 9110, 5.5
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._in_body = True
        if self.parser.should_upgrade():
            raise ValueError("an upgrade, though its offer was taken out")
        self.begin()

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._has_moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._is_whole, self._in_body = True, False
        cycle, self._kept = self._kept, None
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = True
        super().on_message_complete()

    # What follows of it.

    def begin(self) -> None:
        """Make scope, cycle and task for the request whose head is whole."""
        url, headers = self.url, self.headers
        # Of HTTP/1.0 it is ignored (RFC 9110, 10.1.1): such a client takes the 100 for its answer.
        expects = self.expect_100_continue and self.parser.get_http_version() == "1.1"
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()
        cycle: RequestResponseCycle = self.cycle
        self._ends = None
        if self.parser.get_http_version() == "1.0":
            self._ends = EndsWithConnection(cycle)
            cycle.send = self._ends.send  # type: ignore[method-assign,assignment]
        is_long = self._left == CHUNKED or self._left > PASSED_OVER_BYTES
        # Whoever was not told to go on may well not send the body at all.
        if cycle.keep_alive and (is_long or (self._left and expects)):
            cycle.keep_alive = False
            self._kept = cycle

    def on_response_complete(self) -> None:
        """An answer is over, maybe before the body that it answers. In place of uvicorn's, which
        makes a timer for the next request: see `Patience`."""
        self.server_state.total_requests += 1
        if self._held:
            self.flow.pause_reading()  # else more comes before what is held is taken
            self.loop.call_soon(self._take_held)
        elif not self.transport.is_closing():
            self.flow.resume_reading()
            if self._hears_no_more and not self._is_taking:
                self._end_hearing()

    def shutdown(self) -> None:
        """The server ends: with the request under way, if there is one."""
        self._kept = None
        self._lingering.end_soon()
        super().shutdown()

    def pass_over(self, unread: int) -> None:
        """Drop so many bytes of the present body, which nobody wants any more. The parser, which
        waits for them, is replaced."""
        self._left = unread
        self._is_passed_over = unread > 0
        self._in_body = False
        self._renew_parser()

    def refuse(self, error: OnApiError, path: str, *, is_head: bool = False) -> None:
        """Answer what is no request, or what is wrong with the present one's body, and end the
        connection: nobody can say where the next request begins. `is_head`: it asks for no body."""
        logger.warning("refused what is no request: %s %s", error.status, error.details)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        is_answered = self._in_body  # as far as that is what is wrong
        if cycle is not None and not cycle.response_complete:
            is_answered = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
        if is_answered:
            self._has_refused = True
            self.transport.close()
        else:
            self._end_with(error, path, is_head=is_head)

    def _end_with(self, error: OnApiError, path: str, *, is_head: bool = False) -> None:
        self._has_refused = True
        response = cast("Served", self.app).render_error(path, error)
        self.transport.write(refusal(response, self.server_state.default_headers, is_head))
        self.transport.close()

    def _hold(self, data: bytes) -> None:
        self._held += data
        self.flow.pause_reading()

    def _take_held(self) -> None:
        held, self._held = self._held, b""
        if held and not self.transport.is_closing():
            self.flow.resume_reading()
            self._is_taking = True
            try:
                self._take(held)
            finally:
                self._is_taking = False
            if self._hears_no_more:
                self._end_hearing()

    def _take(self, data: bytes | memoryview) -> None:
        at = 0
        while at < len(data) and not self.transport.is_closing():
            if self._left == CHUNKED:
                at = self._take_chunks(bytes(data), at)
            elif self._left:
                at = self._take_body(data, at)
            elif self.is_busy():
                self._hold(bytes(data[at:]))
                return
            else:
                data = bytes(data)  # once
                at = self._take_head(data, at)

    def _take_head(self, data: bytes, at: int) -> int:
        """Take what belongs to a head; return where that ends."""
        gathered = self._gathered
        begun = len(gathered)
        if not begun:
            while data.startswith(b"\r\n", at):  # some clients send one behind a body
                at += 2
            end = data.find(END, at) + len(END)
            if at + len(END) <= end <= at + MAX_HEAD_BYTES:
                self._requests += 1
                self.begin_with(data[at:end])
                return end
        gathered += data[at:]
        while begun < len(END) and gathered.startswith(b"\r\n"):
            del gathered[:2]
        end = gathered.find(END, max(0, begun - len(END) + 1)) + len(END)
        is_whole = end >= len(END)
        if gathered and not is_whole:
            self._begun = self._requests + 1
        try:
            check_size(end if is_whole else len(gathered))
            if not begun:
                check_beginning(bytes(gathered))
        except OnApiError as error:
            self._refuse_head(error, bytes(gathered))
            return len(data)
        if not is_whole:
            return len(data)
        head, behind = bytes(gathered[:end]), len(gathered) - end
        gathered.clear()
        self._requests += 1
        self.begin_with(head)
        return len(data) - behind

    def _refuse_head(self, error: OnApiError, head: bytes) -> None:
        self._gathered.clear()
        self.refuse(error, path_in(head), is_head=head.startswith(b"HEAD "))

    def _refuse_body(self, error: OnApiError) -> None:
        self.refuse(error, path_of(self.url), is_head=self.scope["method"] == "HEAD")

    def _take_body(self, data: bytes | memoryview, at: int) -> int:
        """Take what belongs to a body of a known length; return where that ends."""
        end = min(len(data), at + self._left)
        self._left -= end - at
        if not self._is_passed_over:
            piece = memoryview(data)[at:end]
            if not self._feed(piece) or self._is_whole is bool(self._left):
                self._refuse_body(BadRequest("The request's body is malformed."))
        elif not self._left:
            self._is_passed_over = False
        return end

    def _take_chunks(self, data: bytes, at: int) -> int:
        """Take what belongs to a chunked body; return where that ends."""
        view = memoryview(data)
        while at < len(data) and not self._is_whole:
            end = self._chunks.next_end(data, at)
            self._has_moved = False
            try:
                if not self._feed(view[at:end]):
                    raise BadRequest("The request's body is malformed.")
                self._chunks.passed(data, at, end, has_data=self._has_moved)
            except OnApiError as error:
                self._refuse_body(error)
                return len(data)
            at = end
        if self._is_whole:
            self._left = 0
            self._renew_parser()  # what trailers say of the connection is nothing to go by
        return at

    def _feed(self, data: bytes | memoryview) -> bool:
        """Feed the parser; False when that doesn't take it."""
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return True

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    def _end_hearing(self) -> None:
        """Nothing more comes: end the connection, unless an answer is owed."""
        if self._held or self.transport.is_closing():
            return
        if self._gathered:
            self._refuse_head(BadRequest("The request's head has no end."), bytes(self._gathered))
        elif self._left or not self.is_busy():
            self.transport.close()
        elif not self._has_body and self._awaited != self._requests:
            self._awaited = self._requests
            self.loop.call_later(HALF_CLOSED_SECONDS, self._give_up, self._requests)

    def _give_up(self, request: int) -> None:
        if request == self._requests and self.is_busy() and not self.has_begun_to_answer():
            self.transport.close()
