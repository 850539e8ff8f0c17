"""Large request bodies, received straight from the socket into blocks.

On the ordinary way each byte of a body is copied five times before the application has it (uvloop's
buffer, the parser's piece, uvicorn's buffer, the message, a block), a quarter of a mebibyte at a
time, and each of these wakes the application. Here the kernel writes into the block that is then
hashed and sent on. Knows nothing of what is uploaded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from on_api.core.streams.blocks import (
    LEAST_BYTES,
    MOST_BYTES,
    BlockRequest,
    BufferPool,
    Bytes,
    MemoryBlock,
)

LARGE_BYTES = 128 * 1024
"""Remaining bytes of a body above which this way pays."""
PATIENCE_SECONDS = 0.25
"""Seconds after which a partly filled block is passed on: a slow client is not an idle one."""
LONGEST_WAIT_SECONDS = 2.0
"""Seconds to wait for memory. Then the client goes on with a small block: many clients give up
after five seconds without progress."""


class TakesBack(Protocol):
    """The connection's own protocol, which a `LargeBody` replaces for a while."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl

    def body_begins(self, body: LargeBody) -> None:
        """Note that `body` receives from now on."""

    def body_ends(self, unread: int) -> None:
        """Receive again; `unread` bytes of the body are still to come, and unwanted."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`."""

    def pause_writing(self) -> None:
        """Implement `asyncio.BaseProtocol`."""

    def resume_writing(self) -> None:
        """Implement `asyncio.BaseProtocol`."""


class LargeBody(asyncio.BufferedProtocol):
    """The body of one request, an iterator over its blocks. Takes the connection over at the first
    step, and gives it back with the last byte.

    Holds the block that is being read, one that is ready and one that is being received; then the
    client has to wait, as it does while `pool` has no memory for a block. Asking for the next block
    releases the previous one; `release` releases all. A client that doesn't fill a block within
    `PATIENCE_SECONDS` loses it and gets smaller ones that bypass `pool`: slow clients must not hold
    others' memory. Raises `ClientDisconnect`.
    """

    def __init__(
        self,
        http: TakesBack,
        cycle: RequestResponseCycle,
        left: Callable[[], int],
        pool: BufferPool,
    ) -> None:
        """`left` returns how many bytes of the body uvicorn hasn't received."""
        self._http = http
        self._cycle = cycle
        self._unreceived = left
        self._pool = pool
        self._begun = False
        self._receiving = False
        self._left = 0
        self._read: MemoryBlock | None = None
        """The block that the consumer has now."""
        self._ready: deque[tuple[Bytes, MemoryBlock | None]] = deque()
        """Bytes to be read, each with the block that holds them, or None."""
        self._pace = MOST_BYTES
        """Bytes of the next block at most, by how much this client has filled in time."""
        self._asked: BlockRequest | None = None
        self._asked_at = 0.0
        self._block: MemoryBlock | None = None
        """The block that is being received into."""
        self._free = memoryview(b"")
        """The unfilled part of `_block`."""
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> LargeBody:
        return self

    async def __anext__(self) -> Bytes:
        if self._read is not None:
            self._read.release()
            self._read = None
        if not self._begun:
            self._begin()
        while not self._ready:
            if self._left and (self._lost or self._cycle.disconnected):
                raise ClientDisconnect
            if not self._left:
                raise StopAsyncIteration
            await self._more()
        data, self._read = self._ready.popleft()
        if not self._left:
            self.give_back()
        elif self._block is None and self._asked is None:
            self._ask()
        return data

    def release(self) -> None:
        """Release every block, because the body is not read any further. The rest of it waits until
        the request is answered."""
        if self._receiving:
            self._http.transport.pause_reading()
        self._forget()
        if self._read is not None:
            self._ready.append((b"", self._read))
            self._read = None
        while self._ready:
            _, block = self._ready.popleft()
            if block is not None:
                block.release()

    def give_back(self) -> None:
        """Give the connection back to its own protocol: no more of the body is wanted."""
        if self._receiving:
            self._receiving = False
            self._forget()
            self._http.transport.pause_reading()
            self._http.body_ends(self._left)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`: never offer more bytes than the body has left."""
        if self._block is None:
            self._block = MemoryBlock(min(LEAST_BYTES, self._left), None)
            self._free = memoryview(self._block.memory)
        return self._free

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`."""
        self._free = self._free[nbytes:]
        self._left -= nbytes
        if self._block is not None and not self._free:
            self._pace = min(MOST_BYTES, max(self._pace, 2 * len(self._block.memory)))
            self._pass_on(self._block.memory, self._block)

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`: the client has gone, or was disconnected."""
        self._lost, self._receiving = True, False
        self._forget()
        self._wake()
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass the event on to the connection's own protocol, which writes the answer."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass the event on to the connection's own protocol, which writes the answer."""
        self._http.resume_writing()

    def _begin(self) -> None:
        """Take the bytes that uvicorn has received, and the connection if more are to come."""
        self._begun = True
        cycle = self._cycle
        if cycle.waiting_for_100_continue and not self._http.transport.is_closing():
            self._http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        received, cycle.body = cycle.body, bytearray()
        if received:
            self._ready.append((received, None))
        self._left = self._unreceived()
        if not self._left or cycle.disconnected:
            return
        self._http.flow.pause_reading()
        self._receiving = True
        self._http.body_begins(self)
        self._http.transport.set_protocol(self)
        if not received:
            self._ask()

    def _ask(self) -> None:
        self._asked_at = self._http.loop.time()
        asked = self._pool.ask(min(self._pace, self._left), self._receive_into)
        self._asked = asked if self._block is None else None

    def _receive_into(self, block: MemoryBlock) -> None:
        self._asked = None
        if self._receiving:
            self._block, self._free = block, memoryview(block.memory)
            self._http.transport.resume_reading()
        else:
            block.release()

    async def _more(self) -> None:
        self._waiter = self._http.loop.create_future()
        timer = self._http.loop.call_later(PATIENCE_SECONDS, self._lose_patience)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _lose_patience(self) -> None:
        """Give up waiting for memory after `LONGEST_WAIT_SECONDS`, or for the client to fill its
        block."""
        if self._asked is not None:
            if self._http.loop.time() - self._asked_at >= LONGEST_WAIT_SECONDS:
                self._forget()
                self._http.transport.resume_reading()
        elif self._block is not None:
            block, filled = self._block, len(self._block.memory) - len(self._free)
            self._pace = max(LEAST_BYTES, filled)
            if filled:
                self._pass_on(bytes(memoryview(block.memory)[:filled]), None)
            else:
                self._block, self._free = None, memoryview(b"")
            block.release()
        self._wake()

    def _pass_on(self, data: Bytes, block: MemoryBlock | None) -> None:
        self._ready.append((data, block))
        self._block, self._free = None, memoryview(b"")
        self._http.transport.pause_reading()
        self._wake()

    def _forget(self) -> None:
        """Withdraw the request for a block, and release the one being filled."""
        if self._asked is not None:
            self._asked.withdraw()
        if self._block is not None:
            self._block.release()
        self._asked, self._block, self._free = None, None, memoryview(b"")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
