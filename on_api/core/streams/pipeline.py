"""Bytes that stream through something slow: worked on in threads, one piece ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from on_api.core.streams.blocks import MOST_BYTES, Bytes

DONE_HERE = 64 * 1024
"""Bytes that are worked on sooner than a thread is asked to."""


async def transformed(
    blocks: AsyncIterator[Bytes],
    transform: Callable[[Bytes], Bytes],
    finish: Callable[[], Bytes],
    threads: Executor,
    *,
    ahead: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Bytes]:
    """What `transform` makes of each block, in their order, and `finish` at last; never empty
    pieces.

    A block is worked on in a thread while the piece before it is being read, and is read itself
    until the next one is asked for. Where `ahead()` is False a piece is given out before the next
    block is waited for: then nothing is held meanwhile. Memory: one block, two pieces.
    """
    loop = asyncio.get_running_loop()
    ready: Bytes = b""
    async for block in blocks:
        if len(block) <= DONE_HERE:
            if ready:
                yield ready
            ready = transform(block)
        else:
            work = loop.run_in_executor(threads, transform, block)
            try:
                if ready:
                    yield ready
                ready = await work
            finally:
                work.cancel()  # what nobody waits for any more is not told of its failure
                del work
        del block  # who waits for the next one holds none
        if ready and not ahead():
            yield ready
            ready = b""
    if ready:
        yield ready
    if done := finish():
        yield done


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
