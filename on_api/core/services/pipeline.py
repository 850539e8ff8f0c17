"""Bytes that stream through something slow: worked on in threads, one piece ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from on_api.core.blocks import MOST_BYTES, Bytes

DONE_HERE = 64 * 1024
"""Bytes that are worked on sooner than a thread is asked to."""


async def transformed(
    blocks: AsyncIterator[Bytes],
    update: Callable[[Bytes], Bytes],
    finish: Callable[[], Bytes],
    threads: Executor,
) -> AsyncIterator[Bytes]:
    """What `update` and `finish` make of the blocks, never empty pieces.

    A block is worked on in a thread while the next one is being received. Memory: a few blocks.
    """
    loop = asyncio.get_running_loop()
    working: asyncio.Future[Bytes] | None = None
    try:
        async for block in blocks:
            before, working = None if working is None else await working, None
            if len(block) > DONE_HERE:
                working = loop.run_in_executor(threads, update, block)
            if before:
                yield before
            if working is None and (done := update(block)):
                yield done
        last, working = None if working is None else await working, None
        if last:
            yield last
        if done := finish():
            yield done
    finally:
        if working is not None:
            working.cancel()


async def gathered(chunks: AsyncIterator[Bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about `MOST_BYTES`."""
    held: list[Bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= MOST_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
