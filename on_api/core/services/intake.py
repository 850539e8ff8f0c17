"""The bytes of an upload on their way from the client to the node: gathered, limited, hashed,
encrypted where they are private, never kept.

Memory stays at a few blocks per upload whatever its size.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

from anyio import to_thread

from on_api.core.blocks import WHOLE_BYTES, Bytes, Room
from on_api.core.crypto.age import Encryptor
from on_api.core.errors import PayloadTooLarge, RequestTimeout
from on_api.core.services.capacity import Capacity
from on_api.core.services.leases import LeaseHandle, LeaseService
from on_api.core.services.pipeline import DONE_HERE, transformed

LOOK_EVERY = 64 * 1024 * 1024
"""Bytes between two looks at the node's room."""
SNIFFED_BYTES = 4096
SEALED_AT_ONCE = 2
"""Blocks of one file that are encrypted at the same time."""


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What one upload must keep to: seconds between two chunks, bytes of one file; and the
    memory that all share."""

    idle_timeout: float
    max_file_size: int
    room: Room = field(default_factory=Room)


class FilePassage:
    """One file passing through. After its last byte `digest` and `head` (its first bytes) are
    known, both of the plaintext. With an `encryptor` the node gets what that makes of it."""

    def __init__(self, encryptor: Encryptor | None = None) -> None:
        self.encryptor = encryptor
        self.digest = hashlib.sha256()
        self.head = b""
        self.size = 0
        self.allowed = 0
        """Bytes that were reserved for it on the node."""

    @property
    def stored_size(self) -> int:
        """Bytes that the node gets for what has passed so far."""
        return self.size if self.encryptor is None else self.encryptor.sealed_size(self.size)


class Intake:
    """Everything that passes under one lease."""

    def __init__(
        self,
        lease: LeaseHandle,
        leases: LeaseService,
        capacity: Capacity,
        threads: Executor,
        limits: IntakeLimits,
    ) -> None:
        self._lease = lease
        self._leases = leases
        self._capacity = capacity
        self._threads = threads
        self._limits = limits
        self.received = 0
        """Bytes of all files so far, as the node gets them."""

    def through(self, body: AsyncIterator[Bytes], passage: FilePassage) -> AsyncIterator[Bytes]:
        """Pass a file's body on in blocks, as the node is to have it; each is hashed and encrypted
        in threads while the next one is being received.

        Raises `RequestTimeout`, `PayloadTooLarge`, `QuotaExceeded`, `KeyLimitReached`,
        `InsufficientStorage`: each before the block that would be too much is passed on.
        """
        plain = self._plain(body, passage)
        encryptor = passage.encryptor
        if encryptor is None:
            return plain
        room = self._limits.room
        return transformed(
            plain,
            encryptor.begin,
            encryptor.finish,
            self._threads,
            at_once=lambda: 0 if room.is_crowded() else SEALED_AT_ONCE,
        )

    async def _plain(
        self, body: AsyncIterator[Bytes], passage: FilePassage
    ) -> AsyncIterator[Bytes]:
        loop = asyncio.get_running_loop()
        hashing: asyncio.Future[None] | None = None
        await self._allow(passage)
        with self._limits.room.streaming():
            async for block in blocks(body, self._limits):
                passage.size += len(block)
                if passage.size > self._limits.max_file_size:
                    raise PayloadTooLarge(f"A file may have {self._limits.max_file_size} bytes.")
                await self._allow(passage)
                if len(passage.head) < SNIFFED_BYTES:
                    passage.head += block[: SNIFFED_BYTES - len(passage.head)]
                if hashing is not None:
                    await hashing
                if len(block) <= DONE_HERE:
                    passage.digest.update(block)
                    hashing = None
                else:
                    hashing = loop.run_in_executor(self._threads, passage.digest.update, block)
                yield block
                del block  # who waits for the next one holds none
            if hashing is not None:
                await hashing

    async def _allow(self, passage: FilePassage) -> None:
        """Reserve what the file has come to."""
        more, passage.allowed = passage.stored_size - passage.allowed, passage.stored_size
        before, self.received = self.received, self.received + more
        covered = self._lease.covered
        if covered is not None and self.received > covered:
            await to_thread.run_sync(self._leases.cover, self._lease, self.received)
        if before // LOOK_EVERY != self.received // LOOK_EVERY:
            await self._capacity.require(0)


async def blocks(body: AsyncIterator[Bytes], limits: IntakeLimits) -> AsyncIterator[Bytes]:
    """The body in larger pieces: not much smaller than a block should be, and those that aren't as
    they are. Raises `RequestTimeout` after `limits.idle_timeout` seconds without a byte."""
    gathered: list[Bytes] = []
    size = 0
    chunks = aiter(body)
    while True:
        try:
            async with asyncio.timeout(limits.idle_timeout):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise RequestTimeout from None
        enough = limits.room.share() // 2
        whole = chunk if chunk is not None and len(chunk) >= min(enough, WHOLE_BYTES) else None
        if chunk is not None and whole is None:
            gathered.append(chunk)
            size += len(chunk)
        # What came before a whole block is not joined to it, which would copy that.
        if size and (size >= enough or whole is not None or chunk is None):
            joined = gathered[0] if len(gathered) == 1 else b"".join(gathered)
            gathered, size = [], 0
            yield joined
            del joined
        if chunk is None:
            return
        del chunk
        if whole is not None:
            yield whole
        del whole
