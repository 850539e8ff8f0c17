"""Bytes that stream in large blocks: their type, how large blocks are while few or many stream at
once, and the memory that all of them share. Knows nothing of what they hold."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Bytes = bytes | bytearray | memoryview
"""What is read without being copied, and never written to again. Of a `memoryview`: one dimension,
of bytes, contiguous."""

MOST_BYTES = 1024 * 1024
"""Size of the blocks that are worth a thread's visit."""
LEAST_BYTES = 16 * 1024
"""Blocks up to this size bypass the room: nobody waits for one, and none is counted."""
WHOLE_BYTES = 256 * 1024
"""Least size of a block that is waited for: with smaller ones each byte costs more."""
TOGETHER_BYTES = 3 * 1024 * 1024
"""Size of all counted blocks together."""


class Block:
    """Memory out of a `Room`. Whoever received it calls `release` once nothing reads it any more;
    the count never depends on when Python collects the memory itself, which is not used again."""

    __slots__ = ("_room", "memory")

    def __init__(self, size: int, room: Room | None) -> None:
        """`room`: where it is counted, if it is."""
        self.memory = bytearray(size)
        self._room = room

    def release(self) -> None:
        """Let others have as much. Does nothing the second time."""
        room, self._room = self._room, None
        if room is not None:
            room.give_back(len(self.memory))


class Asked:
    """A wish for a block of up to `most` bytes. `take` gets it."""

    __slots__ = ("most", "take")

    def __init__(self, most: int, take: Callable[[Block], None]) -> None:
        self.most = most
        self.take: Callable[[Block], None] | None = take

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
        self.held = 0
        """Bytes of all counted blocks that were not released yet."""
        self._waiting: deque[Asked] = deque()

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

    def is_crowded(self) -> bool:
        """Whether so many stream that what one has ready is to go on before it gets more."""
        return self.share() < MOST_BYTES

    def ask(self, most: int, take: Callable[[Block], None]) -> Asked:
        """Have `take` called with a block of up to `most` bytes: at once, or as soon as there is
        room for it and whoever asked before has theirs. Nobody waits for one of up to
        `LEAST_BYTES`."""
        asked = Asked(most, take)
        if most <= LEAST_BYTES:
            take(Block(most, None))
            return asked
        self._waiting.append(asked)
        self._deal()
        return asked

    def give_back(self, size: int) -> None:
        """Count a released block out, and give those that wait what has become free: soon, not in
        the midst of whoever releases it."""
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
            block = Block(size, self)
            self.held += size
            try:
                first.take(block)
            except BaseException:
                block.release()  # who couldn't take it gives nothing back
                raise
