"""HTTP protocol of the server, as far as it decides where a request begins and ends: the parser
gets one request at a time, after its head was checked by the rules of `framing.py`.

Always on, whatever fast lanes there are. Bounds what is buffered before the application is called,
answers input that is not a valid request, and lingers before it closes a connection. Knows nothing
of what a request asks for.
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
"""Bytes of an unwanted body that are read and dropped, so that the connection can go on.
An answer that begins before the end of a larger body, or of one of unknown length, is the
connection's last one, and says so."""
HALF_CLOSED_SECONDS = 10.0
"""Seconds for an answer to begin if the client has closed its side and the request has no body:
such a client may be gone, and only writing an answer would show that."""


class FramedHttp(HttpToolsProtocol):
    """Protocol that gives the parser one request at a time, and holds what follows until that one
    is answered."""

    _gathered: bytearray
    """Beginning of an incomplete head."""
    _held = b""
    """Bytes received after the current request."""
    _left = 0
    """Bytes of the current body that are still to come, or `CHUNKED`."""
    _is_passed_over = False
    """True while the rest of a body is dropped; a new parser begins after it."""
    _chunks: ChunkedBody
    """The current body, if it is chunked."""
    _may_begin = False
    """True if a head was checked that the parser hasn't had yet."""
    _in_body = False
    """True while the parser has had a head, but not the whole request."""
    _is_whole = False
    """True if the parser has had all of the current request."""
    _has_moved = False
    """True if the parser has produced bytes of a body since it was last fed."""
    _kept: RequestResponseCycle | None = None
    """The current cycle, if its answer ends the connection unless the whole body comes first."""
    _requests = 0
    """Number of the current request."""
    _begun = 0
    """Number of the last request whose head came in pieces."""
    _awaited = 0
    """Number of the last request whose answer was awaited after its client had closed its side."""
    _has_body = False
    """True if the current request has a body."""
    _ends: EndsWithConnection | None = None
    """Sender of the current answer, if the request is HTTP/1.0."""
    _is_taking = False
    """True while held bytes are processed."""
    _has_refused = False
    _hears_no_more = False
    """True if the client has closed its side."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Implement `asyncio.BaseProtocol`: admit the client, or refuse it."""
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
        """Return whether the next bytes are likely part of a request's body."""
        return self._left != 0

    def data_received(self, data: bytes | memoryview) -> None:
        """Process what has come, or hold it until the request before it is answered."""
        if not self._held:
            self._take(data)
        elif not self.transport.is_closing():
            self._hold(bytes(data))

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Note that the client sends no more; its requests are still answered."""
        self._hears_no_more = True
        self._end_hearing()
        return not self.transport.is_closing()

    def is_busy(self) -> bool:
        """Return whether a request is not answered yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def has_begun_to_answer(self) -> bool:
        """Return whether the current answer has begun."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and cycle.response_started

    def awaited_head(self) -> int:
        """Implement `Watched`. The first head counts as begun: otherwise clients could connect and
        stay silent. While a body is passed over, each piece restarts the wait."""
        if self.is_busy() or self.transport.is_closing():
            return 0
        following = self._requests + 1
        if following in {1, self._begun}:
            return following
        return -(following + max(self._left, 0))

    def head_is_late(self) -> None:
        """Implement `Watched`."""
        if self._gathered:
            self._refuse_head(RequestTimeout("The header is incomplete."), bytes(self._gathered))
        else:
            self.transport.close()

    def unheard(self) -> int:
        """Implement `Owner`."""
        if self._hears_no_more:
            return 0
        if self._left > 0 and not self._has_refused:
            return LINGER_BYTES
        is_behind = self._left or self._held or self._gathered or self._has_refused
        return UNKNOWN_BYTES if is_behind else 0

    def is_cut(self) -> bool:
        """Implement `Owner`."""
        return self._ends is not None and self._ends.is_cut

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`: the client has gone, or was disconnected."""
        self._hears_no_more = True
        self._held = b""
        self._gathered.clear()
        self._patience.forget(self)
        super().connection_lost(exc)

    def begin_with(self, head: bytes) -> None:
        """Give the parser a complete head, which leads to `begin`, or refuse it."""
        self._is_whole = False
        try:
            read, self._left = read_head(head)
            self._has_body = self._left != 0
            if self._left == CHUNKED:
                self._chunks = ChunkedBody()
            self._may_begin = True
            is_taken = self._feed(read) and (self._in_body if self._left else self._is_whole)
            if not is_taken:
                raise BadRequest("The header is malformed.")
        except OnApiError as error:
            self._in_body = False
            self._refuse_head(error, head)

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        """Begin a request. Its scope is only made once it is known to be needed."""
        if not self._may_begin:
            raise ValueError("a request whose header was not checked")
        self._may_begin = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header. Trailers are dropped: they would bypass the checks of the head."""
        if self._in_body:
            return
        name, value = name.lower(), value.rstrip(b" \t")  # RFC 9110, 5.5
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin to serve the request, whose head is complete."""
        self._in_body = True
        if self.parser.should_upgrade():
            raise ValueError("an unexpected protocol upgrade")
        self.begin()

    def on_body(self, body: bytes) -> None:
        """Receive a piece of the body."""
        self._has_moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._is_whole, self._in_body = True, False
        cycle, self._kept = self._kept, None
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = True
        super().on_message_complete()

    # Serving and answering.

    def begin(self) -> None:
        """Make scope, cycle and task for the request whose head is complete."""
        url, headers = self.url, self.headers
        # Ignored for HTTP/1.0 (RFC 9110, 10.1.1): such a client takes the 100 for its answer.
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
        # A client that was not told to go on may not send the body at all.
        if cycle.keep_alive and (is_long or (self._left and expects)):
            cycle.keep_alive = False
            self._kept = cycle

    def on_response_complete(self) -> None:
        """Go on after an answer, which may end before its request's body. Replaces uvicorn's, which
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
        """End the connection, after the request under way if there is one: the server ends."""
        self._kept = None
        self._lingering.end_soon()
        super().shutdown()

    def pass_over(self, unread: int) -> None:
        """Drop the next `unread` bytes of the current body, which the application doesn't want. The
        parser, which waits for them, is replaced."""
        self._left = unread
        self._is_passed_over = unread > 0
        self._in_body = False
        self._renew_parser()

    def refuse(self, error: OnApiError, path: str, *, is_head: bool = False) -> None:
        """Answer an invalid request, or the current one's invalid body, and end the connection:
        where the next request begins is unknown. `is_head`: the answer has no body."""
        logger.warning("rejected a malformed request: %s %s", error.status, error.details)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        is_answered = self._in_body  # for the case that the body is what is wrong
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
                data = bytes(data)  # copied once only
                at = self._take_head(data, at)

    def _take_head(self, data: bytes, at: int) -> int:
        """Process bytes of a head; return the index behind them."""
        gathered = self._gathered
        begun = len(gathered)
        if not begun:
            while data.startswith(b"\r\n", at):  # some clients send one after a body
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
        """Process bytes of a body of known length; return the index behind them."""
        end = min(len(data), at + self._left)
        self._left -= end - at
        if not self._is_passed_over:
            piece = memoryview(data)[at:end]
            if not self._feed(piece) or self._is_whole is bool(self._left):
                self._refuse_body(BadRequest("The request body is malformed."))
        elif not self._left:
            self._is_passed_over = False
        return end

    def _take_chunks(self, data: bytes, at: int) -> int:
        """Process bytes of a chunked body; return the index behind them."""
        view = memoryview(data)
        while at < len(data) and not self._is_whole:
            end = self._chunks.next_end(data, at)
            self._has_moved = False
            try:
                if not self._feed(view[at:end]):
                    raise BadRequest("The request body is malformed.")
                self._chunks.passed(data, at, end, has_data=self._has_moved)
            except OnApiError as error:
                self._refuse_body(error)
                return len(data)
            at = end
        if self._is_whole:
            self._left = 0
            self._renew_parser()  # trailers must not decide whether the connection goes on
        return at

    def _feed(self, data: bytes | memoryview) -> bool:
        """Feed the parser; return False if it refuses the data."""
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return True

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    def _end_hearing(self) -> None:
        """End the connection, whose client sends no more, unless an answer is due."""
        if self._held or self.transport.is_closing():
            return
        if self._gathered:
            self._refuse_head(BadRequest("The header is incomplete."), bytes(self._gathered))
        elif self._left or not self.is_busy():
            self.transport.close()
        elif not self._has_body and self._awaited != self._requests:
            self._awaited = self._requests
            self.loop.call_later(HALF_CLOSED_SECONDS, self._give_up, self._requests)

    def _give_up(self, request: int) -> None:
        if request == self._requests and self.is_busy() and not self.has_begun_to_answer():
            self.transport.close()
