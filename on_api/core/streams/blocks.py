"""Blocks for streaming bytes: their type, their size while few or many streams are active, and the
memory that all streams share. Knows nothing of their content."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Bytes = bytes | bytearray | memoryview
"""Bytes that are read without being copied, and never written to again. A `memoryview` has one
dimension, of bytes, contiguous."""

MOST_BYTES = 1024 * 1024
"""Bytes of the largest blocks, for which a switch to a thread is worth while."""
LEAST_BYTES = 16 * 1024
"""Blocks up to this size in bytes bypass the pool: they are granted at once and not counted."""
WHOLE_BYTES = 256 * 1024
"""Minimum bytes of a counted block: with smaller ones each byte costs more."""
TOGETHER_BYTES = 3 * 1024 * 1024
"""Bytes of all counted blocks together."""


class MemoryBlock:
    """Memory out of a `BufferPool`. The receiver calls `release` once nothing reads it any more;
    the count never depends on when Python collects the memory itself, which is not reused."""

    __slots__ = ("_pool", "memory")

    def __init__(self, size: int, pool: BufferPool | None) -> None:
        """Allocate `size` bytes. `pool` is where they are counted; None: nowhere."""
        self.memory = bytearray(size)
        self._pool = pool

    def release(self) -> None:
        """Give the bytes back to the pool. Does nothing the second time."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give_back(len(self.memory))


class BlockRequest:
    """A request for a block of up to `most` bytes. `take` is called with it."""

    __slots__ = ("most", "take")

    def __init__(self, most: int, take: Callable[[MemoryBlock], None]) -> None:
        self.most = most
        self.take: Callable[[MemoryBlock], None] | None = take

    def withdraw(self) -> None:
        """Cancel the request."""
        self.take = None


class BufferPool:
    """The memory in which bodies stream, of one event loop: `together` bytes, granted block by
    block in the order of the requests. The more streams there are, the smaller blocks are."""

    def __init__(self, together: int = TOGETHER_BYTES) -> None:
        self._together = together
        self.streams = 0
        self.held = 0
        """Bytes of all counted blocks that were not released yet."""
        self._waiting: deque[BlockRequest] = deque()

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Count one more stream while the context is open."""
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def share(self) -> int:
        """Return the bytes that one stream should gather at most: there is room for two such blocks
        of each stream."""
        share = self._together // (2 * max(1, self.streams))
        return max(LEAST_BYTES, min(MOST_BYTES, share))

    def is_crowded(self) -> bool:
        """Return whether there are so many streams that each should pass on what it has before it
        reads more."""
        return self.share() < MOST_BYTES

    def ask(self, most: int, take: Callable[[MemoryBlock], None]) -> BlockRequest:
        """Call `take` with a block of up to `most` bytes: at once, or as soon as there is room for
        it and earlier requests are served. Up to `LEAST_BYTES` are granted at once."""
        asked = BlockRequest(most, take)
        if most <= LEAST_BYTES:
            take(MemoryBlock(most, None))
            return asked
        self._waiting.append(asked)
        self._deal()
        return asked

    def give_back(self, size: int) -> None:
        """Subtract a released block, and serve waiting requests soon, not within the caller's
        release."""
        self.held -= size
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._deal)

    def _deal(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            if first.take is None:
                self._waiting.popleft()
                continue
            size = min(first.most, max(WHOLE_BYTES, self.share()))
            if self.held and self.held + size > self._together:
                return
            self._waiting.popleft()
            block = MemoryBlock(size, self)
            self.held += size
            try:
                first.take(block)
            except BaseException:
                block.release()  # a receiver that failed won't release it
                raise
