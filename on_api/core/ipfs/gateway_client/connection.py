"""One HTTP/1.1 connection to the node's gateway, and the answers that arrive on it.

A small answer is given out when all of it has arrived; a large one as fast as its reader takes it.
No request bodies are sent. Knows nothing of IPFS.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

import httptools

from on_api.core.errors import NodeError, NodeTruncated
from on_api.core.ipfs.gateway_client.heads import Headers, read_common_head

JOINED_BYTES = 64 * 1024
"""Bytes up to which an answer of announced length is given out only when all of it has arrived."""
MAX_HEAD_BYTES = 64 * 1024
"""Upper bound for status line and headers; for what may come between two pieces of a body; for
trailers."""
MOST_WAITING_BYTES = 1024 * 1024
"""Bytes of a body waiting for its reader, above which reading from the socket is paused."""
READ_AGAIN_BELOW_BYTES = 256 * 1024


class Keeper(Protocol):
    """Owner of connections, to which they return when they are free."""

    def keep(self, connection: Connection) -> bool:
        """Take back a free connection. Returns False if it isn't needed."""

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""


class NodeAnswer:
    """An answer, whose body may still be arriving. The caller that receives it closes it."""

    __slots__ = ("_connection", "_ended", "_error", "_size", "_waiter", "_waiting", "headers",
                 "length", "status")  # fmt: skip

    def __init__(self, connection: Connection, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        """Headers in the order of their arrival, names in lower case."""
        self.length: int | None = None
        """Bytes of the body if the head announces them, else None."""
        self._connection: Connection | None = connection
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: NodeError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def whole(self) -> bytes | None:
        """The body, if all of it has arrived and none of it was taken, else None; always there if
        at most `JOINED_BYTES` were announced."""
        if not self._ended or self._error is not None:
            return None
        return self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)

    @property
    def waiting(self) -> int:
        """Bytes that have arrived and were not taken yet."""
        return self._size

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises a `NodeError` if it ends too early; `NodeTimeout`
        when nothing arrives while the reader waits."""
        waiting = self._waiting
        while True:
            while waiting:
                chunk = waiting.popleft()
                self._size -= len(chunk)
                if self._connection is not None and self._size < READ_AGAIN_BELOW_BYTES:
                    self._connection.go_on()
                yield chunk
            if self._error is not None:
                raise self._error
            if self._ended or self._connection is None:
                return
            self._waiter = self._connection.begin_to_wait()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Close it; a body that is not complete is abandoned together with its connection."""
        if self._connection is not None:
            self._connection.fail(NodeTruncated())

    # Called by its connection.

    @property
    def is_waited_for(self) -> bool:
        """True while a reader waits for the next bytes."""
        return self._waiter is not None

    def take(self, chunk: bytes) -> bool:
        """Add the next bytes. Returns False if reading should pause."""
        self._waiting.append(chunk)
        self._size += len(chunk)
        self._wake()
        return self._size <= MOST_WAITING_BYTES

    def end(self, error: NodeError | None = None) -> None:
        """End the body, with the error that broke it off, if any."""
        self._connection = None
        self._ended, self._error = error is None, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stale(Exception):
    """A kept connection was closed before any byte of an answer: retry on another one."""


OutcomeCallback = Callable[["NodeAnswer | NodeError | Stale"], None]
"""Callback for the outcome of a request: its answer, complete if it is small, or the error."""


class Connection(asyncio.Protocol):
    """One connection, for one exchange after the other."""

    def __init__(self, keeper: Keeper, loop: asyncio.AbstractEventLoop, stall: float) -> None:
        self.free_since = 0.0
        """Moment of the loop's clock since which it has been idle."""
        self._keeper = keeper
        self._loop = loop
        self._stall = stall
        self._transport: asyncio.Transport | None = None
        self._is_used = False
        """True if it has completed an exchange before."""
        self._heard = False
        self._parser: httptools.HttpResponseParser | None = None
        """Parser of the present answer; None before its first byte, and when its length is
        known."""
        self._callback: OutcomeCallback | None = None
        """Callback that waits for the answer's head."""
        self._answer: NodeAnswer | None = None
        self._headers: Headers = []
        self._is_head = False
        self._left = 0
        """Bytes of the body still to arrive if its length is known: they need no parser."""
        self._by_close = False
        """True if the body lasts until the connection is closed."""
        self._complete = False
        self._reusable = False
        self._silent = 0
        """Bytes that were parsed since the last piece of a body."""
        self._deadline = 0.0
        self._paused = False

    @property
    def is_open(self) -> bool:
        """True if a request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def is_late(self, now: float) -> bool:
        """Return whether the node's next bytes are overdue."""
        if now < self._deadline:
            return False
        return self._callback is not None or (
            self._answer is not None and self._answer.is_waited_for
        )

    async def exchange(self, request: bytes, is_head: bool) -> NodeAnswer:
        """Send a request and return its answer: after the head, or after the whole body if that is
        small."""
        promise: asyncio.Future[NodeAnswer] = self._loop.create_future()

        def callback(outcome: NodeAnswer | NodeError | Stale) -> None:
            if promise.done():
                return
            if isinstance(outcome, NodeAnswer):
                promise.set_result(outcome)
            else:
                promise.set_exception(outcome)

        self.begin(request, is_head, callback)
        try:
            return await promise
        except asyncio.CancelledError:
            self.fail(NodeTruncated())
            raise

    def begin(self, request: bytes, is_head: bool, callback: OutcomeCallback) -> None:
        """Send a request; the callback variant of `exchange`, without a future. `callback` is
        called once, maybe before this returns."""
        if self._transport is None or self._transport.is_closing():
            callback(NodeTruncated())
            return
        self._parser = None
        self._headers = []
        self._is_head = is_head
        self._heard = self._by_close = self._complete = self._reusable = False
        self._left = self._silent = 0
        self._deadline = self._loop.time() + self._stall
        self._callback = callback
        self._transport.write(request)

    def begin_to_wait(self) -> asyncio.Future[None]:
        """Return a future for the reader of the present answer, and start the stall timeout."""
        self._deadline = self._loop.time() + self._stall
        return self._loop.create_future()

    def go_on(self) -> None:
        """Resume reading."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def fail(self, error: NodeError) -> None:
        """Abort the connection, and the exchange under way with this error."""
        if self._transport is not None:
            self._transport.abort()
        self._keeper.forget(self)
        self._stop(error)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's has all the methods but isn't a subclass.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes of an answer."""
        answer = self._answer
        if self._left and answer is not None:
            self._take_body_part(answer, data)
        elif self._callback is None and answer is None:
            self.fail(NodeError())  # no request was sent
        elif self._heard or self._is_head or not self._take_common_head(data):
            if self._parser is None:
                self._parser = httptools.HttpResponseParser(self)
            self._parse(self._parser, data)

    def connection_lost(self, error: Exception | None) -> None:
        """End the exchange under way, with an error unless its body lasts until the connection is
        closed."""
        self._transport = None
        self._keeper.forget(self)
        if self._answer is not None and self._by_close and error is None:
            self._finish(self._answer)
        elif self._callback is not None and self._is_used and not self._heard:
            self._report(Stale())
        else:
            self._stop(NodeTruncated())

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header or a trailer."""
        self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Create the answer from its complete head. Raises `ValueError` for one that is not
        accepted."""
        parser, headers = self._parser, self._headers
        if parser is None or self._complete:
            return
        if self._silent > MAX_HEAD_BYTES and _size(headers) > MAX_HEAD_BYTES:
            raise ValueError("the header fields are too large")
        status = parser.get_status_code()
        if status < 200:
            if status == 101 or status < 100:
                raise ValueError("unexpected status code")
            return  # the answer itself is still to come
        self._headers = []
        answer = NodeAnswer(self, status, headers)
        has_end = False
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise ValueError("folded header field")
            if name == b"content-length":
                answer.length = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise ValueError("unexpected transfer coding")
                has_end = True
        self._answer = answer
        self._reusable = parser.should_keep_alive()
        if self._is_head or status in {204, 304}:
            answer.length = 0
            self._complete = True
        else:
            self._left = answer.length or 0
            self._by_close = answer.length is None and not has_end

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if self._answer is None or self._complete:
            self._reusable = False  # more than was announced
            return
        self._silent = 0
        if self._left:
            self._left -= len(body)
        self._give(self._answer, body)

    def on_message_begin(self) -> None:
        """Begin an answer. Raises `ValueError` for a second one."""
        if self._complete:
            raise ValueError("unexpected second response")
        self._headers = []

    def on_message_complete(self) -> None:
        """Mark the answer as complete."""
        if self._answer is not None:
            self._complete = True

    # Processing of an answer.

    def _take_common_head(self, data: bytes) -> bool:
        """Take an answer with a head as the node usually writes it, without the parser, which would
        call us for each of some twenty headers. Returns False if the parser is needed."""
        read = read_common_head(data)
        if read is None:
            return False
        status, headers, length, start = read
        self._heard = self._reusable = True
        self._answer = answer = NodeAnswer(self, status, headers)
        answer.length = self._left = length
        body = data[start:]
        if body or not length:
            self._take_body_part(answer, body)
        if self._left and length > JOINED_BYTES:
            self._report(answer)
        return True

    def _take_body_part(self, answer: NodeAnswer, data: bytes) -> None:
        if len(data) > self._left:
            data = data[: self._left]
            self._reusable = False
        self._left -= len(data)
        if data:
            self._give(answer, data)
        if not self._left:
            self._finish(answer)

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        self._heard = True
        self._silent += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._complete:
                self.fail(NodeError("The IPFS node's response could not be parsed."))
                return
            self._reusable = False
        answer = self._answer
        if answer is not None and self._complete:
            self._finish(answer)
            return
        if answer is not None and self._left:
            self._parser = None
        elif self._silent > MAX_HEAD_BYTES:
            self.fail(NodeError("The IPFS node's response could not be parsed."))
            return
        if answer is None:
            return
        if answer.length is None or answer.length > JOINED_BYTES:
            self._report(answer)

    def _give(self, answer: NodeAnswer, chunk: bytes) -> None:
        self._deadline = self._loop.time() + self._stall
        if not answer.take(chunk) and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _finish(self, answer: NodeAnswer) -> None:
        """Complete an answer, and return the connection to its keeper or close it."""
        self._answer = self._parser = None
        self._is_used = True
        # Kubo reports a failure after its 200 in a trailer.
        failed = any(name == b"x-stream-error" and value for name, value in self._headers)
        answer.end(NodeTruncated() if failed else None)
        self.go_on()
        self.free_since = self._loop.time()
        if not (self._reusable and self.is_open and self._keeper.keep(self)):
            self._keeper.forget(self)
            if self._transport is not None:
                self._transport.close()
        if failed:
            self._stop(NodeTruncated())
        self._report(answer)

    def _report(self, outcome: NodeAnswer | NodeError | Stale) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(outcome)

    def _stop(self, error: NodeError) -> None:
        answer, self._answer = self._answer, None
        self._parser = None
        self._left = 0
        if answer is not None:
            answer.end(error)
        self._report(error)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
