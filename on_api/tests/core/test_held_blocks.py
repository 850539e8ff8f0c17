"""Whoever waits for the next piece of a body holds none: with hundreds of bodies, the pieces that
are held while nobody needs them would be most of the memory."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from on_api.core.services.uploads.intake import IntakeLimits, blocks
from on_api.core.streams.blocks import Bytes
from on_api.core.streams.pipeline import DONE_HERE_BYTES, transformed
from on_api.core.web.digests import SentDigests
from on_api.core.web.multipart import MultipartReader

pytestmark = pytest.mark.anyio

LARGE = 4 * DONE_HERE_BYTES
HEAD = b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'

Wrap = Callable[[AsyncIterator[Bytes]], AsyncIterator[Bytes]]


class Piece(bytearray):
    """A piece of a body that can be watched."""

    __slots__ = ("__weakref__",)


def gathering(body: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
    """As uploads gather them."""
    return blocks(body, IntakeLimits(max_file_size=2**40))


def encrypting(body: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
    """As private files are encrypted, among many."""
    threads = ThreadPoolExecutor(1)
    return transformed(body, bytes, lambda: b"", threads, ahead=lambda: False)


def compared(body: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
    """As bodies are compared with a digest."""
    digest = b"sha-256=:%s:" % (b"A" * 43 + b"=")
    return SentDigests([(b"content-digest", digest)]).checked(body)


async def parsed(body: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
    """As the part of a form."""

    async def form() -> AsyncIterator[Bytes]:
        yield HEAD
        async for piece in body:
            yield piece
            del piece

    async for part in MultipartReader(
        "multipart/form-data; boundary=b0undary", form(), max_parts=1
    ).parts():
        async for chunk in part.chunks():
            yield chunk
            del chunk


@pytest.mark.parametrize("wrap", [gathering, encrypting, compared, parsed])
async def test_who_waits_for_more_holds_no_piece(wrap: Wrap) -> None:
    """The piece is gone though nobody has collected garbage, and though the next never comes."""
    seen: list[weakref.ref[Piece]] = []

    async def coming() -> AsyncIterator[Bytes]:
        piece = Piece(LARGE)
        seen.append(weakref.ref(piece))
        yield piece
        del piece
        await asyncio.Event().wait()

    stream = wrap(coming())
    given = await anext(stream)
    assert len(given) > 0
    del given

    async def rest() -> None:
        async for piece in stream:
            del piece

    waiting = asyncio.ensure_future(rest())
    end = time.monotonic() + 15
    while seen[0]() is not None:
        assert time.monotonic() < end, "it is still held"
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
