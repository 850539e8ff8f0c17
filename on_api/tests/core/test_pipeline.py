"""Blocks worked on in threads, in their order, one piece ahead."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from on_api.core.streams.blocks import Bytes
from on_api.core.streams.pipeline import DONE_HERE_BYTES, transformed

pytestmark = pytest.mark.anyio

LARGE, SMALL = DONE_HERE_BYTES + 1, 3


@pytest.mark.parametrize("ahead", [False, True])
async def test_in_their_order(ahead: bool) -> None:
    """Large blocks, small ones, and some of which nothing comes: each block is done with before the
    next one is asked for, and what comes of one is given out while the next is worked on only where
    that is allowed."""
    sizes = [LARGE, LARGE, SMALL, 0, LARGE, LARGE, LARGE, SMALL, SMALL, LARGE]
    blocks = [bytes([number]) * size for number, size in enumerate(sizes)]
    done: list[bytes] = []
    given: list[bytes] = []

    def transform(block: Bytes) -> Bytes:
        done.append(bytes(block))
        return block

    async def coming() -> AsyncIterator[bytes]:
        for number, block in enumerate(blocks):
            assert len(done) == number
            assert ahead or given == [piece for piece in blocks[:number] if piece]
            yield block

    with ThreadPoolExecutor(1) as threads:
        stream = transformed(coming(), transform, lambda: b"end", threads, ahead=lambda: ahead)
        async for piece in stream:
            given.append(bytes(piece))
    assert given == [*filter(None, blocks), b"end"]


async def test_one_piece_is_read_while_the_next_is_made() -> None:
    """So that whoever takes the pieces and the threads work at the same time."""
    taken = threading.Event()

    def transform(block: Bytes) -> Bytes:
        assert block[0] == 0 or taken.wait(10)
        return block

    async def coming() -> AsyncIterator[bytes]:
        for number in range(2):
            yield bytes([number]) * LARGE

    with ThreadPoolExecutor(1) as threads:
        stream = transformed(coming(), transform, lambda: b"", threads)
        assert (await anext(stream))[0] == 0
        taken.set()
        assert (await anext(stream))[0] == 1


async def test_what_fails_in_a_thread_ends_the_stream() -> None:
    """After what came before it."""

    def transform(block: Bytes) -> Bytes:
        if block[0] == 2:
            raise ValueError("the third")
        return block

    async def coming() -> AsyncIterator[bytes]:
        for number in range(6):
            yield bytes([number]) * LARGE

    with ThreadPoolExecutor(3) as threads:
        stream = transformed(coming(), transform, lambda: b"", threads)
        came = [(await anext(stream))[0] for _ in range(2)]
        with pytest.raises(ValueError, match="the third"):
            await anext(stream)
    assert came == [0, 1]
