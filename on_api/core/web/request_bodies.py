"""A request's body as it streams, in large blocks if the server can provide them.

The server offers that by the extension `BODY_BLOCKS`, as `fast/protocol.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from on_api.core.errors import RequestTimeout
from on_api.core.streams.blocks import BufferPool, Bytes
from on_api.core.web.digests import SentDigests
from on_api.core.web.extensions import BODY_BLOCKS, extension

BytesT = TypeVar("BytesT", bound=Bytes)
T = TypeVar("T")


class BlockedBody(Protocol):
    """A body in blocks. Each may be used until the next one is requested."""

    def __aiter__(self) -> AsyncIterator[Bytes]: ...

    def release(self) -> None:
        """Release every block; the body is not used after that."""


@contextmanager
def body_of(
    request: Request, pool: BufferPool, idle_timeout: float
) -> Iterator[AsyncIterator[Bytes]]:
    """Provide the body, in blocks out of `pool` or in smaller pieces, while the context lasts: its
    end releases the blocks, however much of the body was read.

    Each piece may be used until the next one is requested; copy what is needed for longer. Reading
    raises `ClientDisconnect`; `RequestTimeout` after `idle_timeout` seconds without a byte; and
    `BadRequest` at the end of a body that doesn't match its sender's digest.
    """
    take: Callable[[BufferPool], BlockedBody] | None = extension(request.scope, BODY_BLOCKS)
    if take is None:
        yield checked_stream(request, idle_timeout)
        return
    body = take(pool)
    try:
        yield _checked(request, _BlocksInTime(aiter(body), idle_timeout))
    finally:
        body.release()


def checked_stream(request: Request, idle_timeout: float) -> AsyncIterator[bytes]:
    """Return the body in the pieces that the server provides; reading it raises the errors of
    `body_of`."""
    return _checked(request, _PiecesInTime(request.receive, idle_timeout))


class _PiecesInTime(AsyncIterator[bytes]):
    """The pieces of a body. Raises `RequestTimeout` when none comes in time."""

    def __init__(self, receive: Receive, idle_timeout: float) -> None:
        self._receive = receive
        self._seconds = idle_timeout
        self._is_whole = False

    async def __anext__(self) -> bytes:
        while not self._is_whole:
            message = await _in_time(self._receive(), self._seconds)
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._is_whole = not message.get("more_body", False)
            piece: bytes = message.get("body", b"")
            del message  # hold none while waiting for the next one
            if piece:
                return piece
        raise StopAsyncIteration


class _BlocksInTime(AsyncIterator[Bytes]):
    """The blocks of a body. Raises `RequestTimeout` when none comes in time."""

    def __init__(self, body: AsyncIterator[Bytes], idle_timeout: float) -> None:
        self._body = body
        self._seconds = idle_timeout

    async def __anext__(self) -> Bytes:
        return await _in_time(anext(self._body), self._seconds)


async def _in_time(coming: Awaitable[T], seconds: float) -> T:
    """Return what comes. Raises `RequestTimeout` when it doesn't come in time."""
    try:
        async with asyncio.timeout(seconds):
            return await coming
    except TimeoutError:
        raise RequestTimeout from None


def _checked(request: Request, body: AsyncIterator[BytesT]) -> AsyncIterator[BytesT]:
    digests = SentDigests(request.scope["headers"])
    return digests.checked(body) if digests else body
