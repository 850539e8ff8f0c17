"""One HTTP/1.1 connection to the node's gateway, and the answers that come over it.

What is small comes whole, what is large as fast as it is taken. No bodies go out. Knows nothing of
IPFS.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

import httptools

from on_api.core.errors import NodeError, NodeTruncated
from on_api.core.ipfs.gateway_client.heads import Headers, read_usual_head

JOINED_BYTES = 64 * 1024
"""An answer whose body is announced to be no longer is given out when all of it has come."""
MAX_HEAD_BYTES = 64 * 1024
"""Of status line and headers; of what may come between two pieces of a body; of trailers."""
MOST_WAITING = 1024 * 1024
"""Bytes of a body that nobody has taken yet, above which no more are read."""
READ_AGAIN_BELOW = 256 * 1024


class Keeper(Protocol):
    """Where connections go that are free."""

    def keep(self, connection: Connection) -> bool:
        """Take one back that is free. False: it isn't needed."""

    def forget(self, connection: Connection) -> None:
        """One has ended."""


class NodeAnswer:
    """An answer; its body may still be to come. Whoever has it closes it."""

    __slots__ = ("_connection", "_ended", "_error", "_size", "_waiter", "_waiting", "headers",
                 "length", "status")  # fmt: skip

    def __init__(self, connection: Connection, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        """As they came, names in lower case."""
        self.length: int | None = None
        """Bytes of the body, where that was announced."""
        self._connection: Connection | None = connection
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: NodeError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def whole(self) -> bytes | None:
        """The body, if it is all there and none of it was taken; so it is where at most
        `JOINED_BYTES` were announced."""
        if not self._ended or self._error is not None:
            return None
        return self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)

    @property
    def waiting(self) -> int:
        """Bytes that have come and were not taken yet."""
        return self._size

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises a `NodeError` rather than end too soon; `NodeTimeout` when
        nothing comes while it is waited for."""
        waiting = self._waiting
        while True:
            while waiting:
                chunk = waiting.popleft()
                self._size -= len(chunk)
                if self._connection is not None and self._size < READ_AGAIN_BELOW:
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
        """Let go of it; a body that is not at its end is not waited for."""
        if self._connection is not None:
            self._connection.fail(NodeTruncated())

    # For its connection.

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for the next bytes."""
        return self._waiter is not None

    def take(self, chunk: bytes) -> bool:
        """The next bytes. False: that is enough for now."""
        self._waiting.append(chunk)
        self._size += len(chunk)
        self._wake()
        return self._size <= MOST_WAITING

    def end(self, error: NodeError | None = None) -> None:
        """There is no more to come."""
        self._connection = None
        self._ended, self._error = error is None, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stale(Exception):
    """A connection that was kept has ended without a word about the request."""


Told = Callable[["NodeAnswer | NodeError | Stale"], None]
"""Is told what came of a request: its answer, whole if that is little, or why there is none."""


class Connection(asyncio.Protocol):
    """One connection: one exchange after the other."""

    def __init__(self, keeper: Keeper, loop: asyncio.AbstractEventLoop, stall: float) -> None:
        self.free_since = 0.0
        """On the loop's clock."""
        self._keeper = keeper
        self._loop = loop
        self._stall = stall
        self._transport: asyncio.Transport | None = None
        self._is_used = False
        """An exchange came before the present one."""
        self._heard = False
        self._parser: httptools.HttpResponseParser | None = None
        """None before the first byte of an answer, and where its end needs none."""
        self._told: Told | None = None
        """Whoever waits for an answer."""
        self._answer: NodeAnswer | None = None
        self._headers: Headers = []
        self._is_head = False
        self._left = 0
        """Bytes of a body whose length is known: they need no parser."""
        self._by_close = False
        """The body lasts until the connection's end."""
        self._complete = False
        self._reusable = False
        self._silent = 0
        """Bytes since the last piece of a body."""
        self._deadline = 0.0
        self._paused = False

    @property
    def is_open(self) -> bool:
        """Whether anything may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def is_late(self, now: float) -> bool:
        """Whether the node is waited for, for too long."""
        if now < self._deadline:
            return False
        return self._told is not None or (self._answer is not None and self._answer.is_waited_for)

    async def exchange(self, request: bytes, is_head: bool) -> NodeAnswer:
        """Send a request and wait for its answer: for the head, or all of it if that is little."""
        promise: asyncio.Future[NodeAnswer] = self._loop.create_future()

        def told(said: NodeAnswer | NodeError | Stale) -> None:
            if promise.done():
                return
            if isinstance(said, NodeAnswer):
                promise.set_result(said)
            else:
                promise.set_exception(said)

        self.begin(request, is_head, told)
        try:
            return await promise
        except asyncio.CancelledError:
            self.fail(NodeTruncated())
            raise

    def begin(self, request: bytes, is_head: bool, told: Told) -> None:
        """The same, for whom being woken is too much. `told` is called once, maybe at once."""
        if self._transport is None or self._transport.is_closing():
            told(NodeTruncated())
            return
        self._parser = None
        self._headers = []
        self._is_head = is_head
        self._heard = self._by_close = self._complete = self._reusable = False
        self._left = self._silent = 0
        self._deadline = self._loop.time() + self._stall
        self._told = told
        self._transport.write(request)

    def begin_to_wait(self) -> asyncio.Future[None]:
        """What the reader of the present answer waits for. The clock runs from now on."""
        self._deadline = self._loop.time() + self._stall
        return self._loop.create_future()

    def go_on(self) -> None:
        """Read again."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def fail(self, error: NodeError) -> None:
        """End it, and the exchange under way with this error."""
        if self._transport is not None:
            self._transport.abort()
        self._keeper.forget(self)
        self._stop(error)

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        # uvloop's is one in all but its ancestors.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        answer = self._answer
        if self._left and answer is not None:
            self._take_plain(answer, data)
        elif self._told is None and answer is None:
            self.fail(NodeError())  # nobody has asked
        elif self._heard or self._is_head or not self._take_usual(data):
            if self._parser is None:
                self._parser = httptools.HttpResponseParser(self)
            self._parse(self._parser, data)

    def connection_lost(self, error: Exception | None) -> None:
        """It has ended, as it was announced or not."""
        self._transport = None
        self._keeper.forget(self)
        if self._answer is not None and self._by_close and error is None:
            self._finish(self._answer)
        elif self._told is not None and self._is_used and not self._heard:
            self._tell(Stale())
        else:
            self._stop(NodeTruncated())

    # What the parser tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """A head is whole."""
        parser, headers = self._parser, self._headers
        if parser is None or self._complete:
            return
        if self._silent > MAX_HEAD_BYTES and _size(headers) > MAX_HEAD_BYTES:
            raise ValueError("too large")
        status = parser.get_status_code()
        if status < 200:
            if status == 101 or status < 100:
                raise ValueError("a status that nobody has asked for")
            return  # the answer itself is still to come
        self._headers = []
        answer = NodeAnswer(self, status, headers)
        has_end = False
        for name, value in headers:
            if b"\n" in value or b"\r" in value:
                raise ValueError("a folded header")
            if name == b"content-length":
                answer.length = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise ValueError("an encoding that nobody has asked for")
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
        """A piece of a body."""
        if self._answer is None or self._complete:
            self._reusable = False  # more than was announced
            return
        self._silent = 0
        if self._left:
            self._left -= len(body)
        self._give(self._answer, body)

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._complete:
            raise ValueError("a second one")
        self._headers = []

    def on_message_complete(self) -> None:
        """An answer is whole."""
        if self._answer is not None:
            self._complete = True

    # The way of an answer.

    def _take_usual(self, data: bytes) -> bool:
        """Take an answer as the node usually begins it, without the parser: that calls us for each
        of some twenty headers."""
        read = read_usual_head(data)
        if read is None:
            return False
        status, headers, length, start = read
        self._heard = self._reusable = True
        self._answer = answer = NodeAnswer(self, status, headers)
        answer.length = self._left = length
        body = data[start:]
        if body or not length:
            self._take_plain(answer, body)
        if self._left and length > JOINED_BYTES:
            self._tell(answer)
        return True

    def _take_plain(self, answer: NodeAnswer, data: bytes) -> None:
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
                self.fail(NodeError("The IPFS node's answer was not understood."))
                return
            self._reusable = False
        answer = self._answer
        if answer is not None and self._complete:
            self._finish(answer)
            return
        if answer is not None and self._left:
            self._parser = None
        elif self._silent > MAX_HEAD_BYTES:
            self.fail(NodeError("The IPFS node's answer was not understood."))
            return
        if answer is None:
            return
        if answer.length is None or answer.length > JOINED_BYTES:
            self._tell(answer)

    def _give(self, answer: NodeAnswer, chunk: bytes) -> None:
        self._deadline = self._loop.time() + self._stall
        if not answer.take(chunk) and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _finish(self, answer: NodeAnswer) -> None:
        """All of an answer has come."""
        self._answer = self._parser = None
        self._is_used = True
        # What Kubo finds out behind its 200 is told in a trailer.
        said = any(name == b"x-stream-error" and value for name, value in self._headers)
        answer.end(NodeTruncated() if said else None)
        self.go_on()
        self.free_since = self._loop.time()
        if not (self._reusable and self.is_open and self._keeper.keep(self)):
            self._keeper.forget(self)
            if self._transport is not None:
                self._transport.close()
        if said:
            self._stop(NodeTruncated())
        self._tell(answer)

    def _tell(self, said: NodeAnswer | NodeError | Stale) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(said)

    def _stop(self, error: NodeError) -> None:
        answer, self._answer = self._answer, None
        self._parser = None
        self._left = 0
        if answer is not None:
            answer.end(error)
        self._tell(error)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
