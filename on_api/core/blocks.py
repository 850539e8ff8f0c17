"""Bytes that stream in large blocks: their type, how large blocks are while few or many stream at
once, and the memory that all of them share. Knows nothing of what they hold."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Bytes = bytes | bytearray | memoryview
"""What is read without being copied, and never written to again. Of a `memoryview`: one dimension,
of bytes, contiguous."""

MOST_BYTES = 1024 * 1024
"""Of the blocks that are worth a thread's visit."""
LEAST_BYTES = 16 * 1024
"""Of a block that nobody has to wait for, whatever there is in memory."""
WHOLE_BYTES = 256 * 1024
"""Of a block that many must wait for: with smaller ones each byte costs more."""
TOGETHER_BYTES = 3 * 1024 * 1024
"""Of all blocks in memory, the least ones and what becomes of them left out."""


class Block(bytearray):
    """Memory out of a `Room`, which has it back when nobody refers to it any more: a socket or a
    thread may do so for longer than who has received it."""

    __slots__ = ("_room",)

    def __init__(self, size: int, room: Room) -> None:
        super().__init__(size)
        self._room = room

    def __del__(self) -> None:
        self._room._give_back(len(self))


class Asked:
    """A wish for a block of up to `most` bytes. `take` gets it."""

    __slots__ = ("most", "take")

    def __init__(self, most: int, take: Callable[[bytearray], None]) -> None:
        self.most = most
        self.take: Callable[[bytearray], None] | None = take

    def withdraw(self) -> None:
        """It isn't wanted any more."""
        self.take = None


class Room:
    """The memory in which bodies stream, of one event loop: `together` bytes, dealt out block by
    block in the order in which they are asked for. The more streams there are, the smaller blocks
    are."""

    def __init__(self, together: int = TOGETHER_BYTES) -> None:
        self._together = together
        self.streams = 0
        self._used = 0
        self._waiting: deque[Asked] = deque()
        self._freed: deque[int] = deque()
        """Bytes that came back, in whichever thread."""
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """One more stream."""
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def share(self) -> int:
        """Bytes that one stream should gather at most: two such of each have room."""
        share = self._together // (2 * max(1, self.streams))
        return max(LEAST_BYTES, min(MOST_BYTES, share))

    def held(self) -> int:
        """Bytes of all blocks that somebody refers to."""
        return self._used - sum(self._freed.copy())

    def is_crowded(self) -> bool:
        """Whether so many stream that what one has ready is to go on before it gets more."""
        return self.share() < MOST_BYTES

    def ask(self, most: int, take: Callable[[bytearray], None]) -> Asked:
        """Have `take` called with a block of up to `most` bytes: at once, or as soon as there is
        room for it and whoever asked before has theirs. Nobody waits for one of up to
        `LEAST_BYTES`."""
        asked = Asked(most, take)
        if most <= LEAST_BYTES:
            take(bytearray(most))
            return asked
        self._loop = asyncio.get_running_loop()
        self._waiting.append(asked)
        self._deal()
        return asked

    def _deal(self) -> None:
        while self._freed:
            self._used -= self._freed.popleft()
        while self._waiting:
            first = self._waiting[0]
            if first.take is None:
                self._waiting.popleft()
                continue
            size = min(first.most, max(WHOLE_BYTES, self.share()))
            if self._used and self._used + size > self._together:
                return
            block = Block(size, self)
            self._used += size
            self._waiting.popleft()
            first.take(block)
            del block

    def _give_back(self, size: int) -> None:
        self._freed.append(size)
        if self._waiting and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._deal)
