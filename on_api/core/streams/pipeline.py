"""Streams through a slow step, which runs in threads, one piece ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from on_api.core.streams.blocks import MOST_BYTES, Bytes

DONE_HERE_BYTES = 64 * 1024
"""Bytes up to which a block is processed on the event loop: a thread would take longer to start."""


async def transformed(
    blocks: AsyncIterator[Bytes],
    transform: Callable[[Bytes], Bytes],
    finish: Callable[[], Bytes],
    threads: Executor,
    *,
    ahead: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Bytes]:
    """Yield the result of `transform` for each block, in order, and that of `finish` at last; never
    empty pieces.

    A block is processed in a thread while the reader uses the piece before it, and may itself be
    used until the next block is requested. If `ahead()` is False, a piece is yielded before the
    next block is awaited, so that nothing is held meanwhile. Memory: one block, two pieces.
    """
    loop = asyncio.get_running_loop()
    ready: Bytes = b""
    async for block in blocks:
        if len(block) <= DONE_HERE_BYTES:
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
                work.cancel()  # a result that is no longer awaited reports no failure
                del work
        del block  # hold none while waiting for the next one
        if ready and not ahead():
            yield ready
            ready = b""
    if ready:
        yield ready
    if done := finish():
        yield done


async def gathered(chunks: AsyncIterator[Bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in pieces of about `MOST_BYTES`."""
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
