"""Bytes that stream through something slow: worked on in threads, one piece ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

BLOCK_BYTES = 1024 * 1024
"""Of the pieces that are worth a thread's visit."""
DONE_HERE = 64 * 1024
"""Bytes that are worked on sooner than a thread is asked to."""


async def transformed(
    blocks: AsyncIterator[bytes],
    update: Callable[[bytes], bytes | bytearray],
    finish: Callable[[], bytes | bytearray],
    threads: Executor,
) -> AsyncIterator[bytes]:
    """What `update` and `finish` make of the blocks, never empty pieces.

    A block is worked on in a thread while the next one is being received. Memory: a few blocks.
    """
    loop = asyncio.get_running_loop()
    working: asyncio.Future[bytes | bytearray] | None = None
    try:
        async for block in blocks:
            done = b"" if working is None else await working
            working = None
            if len(block) > DONE_HERE:
                working = loop.run_in_executor(threads, update, block)
            else:
                done += update(block)
            if done:
                yield bytes(done)
        if working is not None and (done := await working):
            yield bytes(done)
        working = None
        if last := finish():
            yield bytes(last)
    finally:
        if working is not None:
            working.cancel()


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about `BLOCK_BYTES`."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
