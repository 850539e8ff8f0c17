"""Blocks worked on in threads: at the same time, and still in their order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from on_api.core.services.pipeline import DONE_HERE, transformed

pytestmark = pytest.mark.anyio

LARGE, SMALL = DONE_HERE + 1, 3


@pytest.mark.parametrize("at_once", [0, 1, 2, 3])
async def test_in_their_order(at_once: int) -> None:
    """Large blocks, small ones, and some of which nothing comes, however long each takes: each
    waits for its successor to be begun where as many may be worked on."""
    sizes = [LARGE, LARGE, SMALL, 0, LARGE, LARGE, LARGE, SMALL, SMALL, LARGE]
    blocks = [bytes([number]) * size for number, size in enumerate(sizes)]
    begun = [threading.Event() for _ in range(len(blocks) + 1)]

    def begin(block: bytes) -> Callable[[], bytes]:
        number = blocks.index(block)
        begun[number].set()
        return partial(work, number, block)

    def work(number: int, block: bytes) -> bytes:
        together = at_once > 1 and len(block) == LARGE and sizes[number + 1 : number + 2] == [LARGE]
        assert not together or begun[number + 1].wait(10)
        return block

    async def coming() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block
            await asyncio.sleep(0)

    with ThreadPoolExecutor(3) as threads:
        stream = transformed(
            coming(),
            begin,  # type: ignore[arg-type]  # of bytes only
            lambda: b"end",
            threads,
            at_once=lambda: at_once,
        )
        assert [bytes(piece) async for piece in stream] == [*filter(None, blocks), b"end"]


async def test_what_fails_in_a_thread_ends_the_stream() -> None:
    """After what came before it."""

    def begin(block: object) -> Callable[[], bytes]:
        return partial(work, bytes(block))  # type: ignore[call-overload]

    def work(block: bytes) -> bytes:
        if block[0] == 2:
            raise ValueError("the third")
        return block

    async def coming() -> AsyncIterator[bytes]:
        for number in range(6):
            yield bytes([number]) * LARGE

    with ThreadPoolExecutor(3) as threads:
        stream = transformed(coming(), begin, lambda: b"", threads, at_once=lambda: 2)
        came = [(await anext(stream))[0] for _ in range(2)]
        with pytest.raises(ValueError, match="the third"):
            await anext(stream)
    assert came == [0, 1]
