"""Bytes that stream through something slow: worked on in threads, one piece ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from on_api.core.blocks import MOST_BYTES, Bytes

DONE_HERE = 64 * 1024
"""Bytes that are worked on sooner than a thread is asked to."""


async def transformed(
    blocks: AsyncIterator[Bytes],
    begin: Callable[[Bytes], Callable[[], Bytes]],
    finish: Callable[[], Bytes],
    threads: Executor,
    *,
    at_once: Callable[[], int] = lambda: 1,
) -> AsyncIterator[Bytes]:
    """What comes of the blocks, in their order, and `finish` at last; never empty pieces. `begin`
    takes a block and says what is to be done with it.

    That is done in threads, for `at_once()` blocks at the same time, while the next one is being
    received; where that is 0, nothing is held while the next one is waited for. Memory: a few
    blocks.
    """
    loop = asyncio.get_running_loop()
    working: deque[asyncio.Future[Bytes]] = deque()
    try:
        async for block in blocks:
            work = begin(block)
            ready: list[Bytes] = []
            if len(block) > DONE_HERE:
                most = at_once()
                while working and len(working) >= most:
                    ready.append(await working.popleft())
                working.append(loop.run_in_executor(threads, work))
                if not most:
                    ready.append(await working.popleft())
            else:
                while working:
                    ready.append(await working.popleft())
                ready.append(work())
            del block, work  # who waits for the next one holds none
            while ready:
                if done := ready.pop(0):
                    yield done
                del done
        while working:
            if done := await working.popleft():
                yield done
        if done := finish():
            yield done
    finally:
        for future in working:
            future.cancel()


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
