"""The bytes of an upload on their way from the client to the node: gathered, limited, hashed,
encrypted where they are private, never kept.

Memory stays at a few blocks per upload whatever its size.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

from anyio import to_thread

from on_api.core.crypto.age import Encryptor
from on_api.core.errors import PayloadTooLarge
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.content.leases import LeaseHandle, LeaseService
from on_api.core.streams.blocks import WHOLE_BYTES, Bytes, Room
from on_api.core.streams.pipeline import DONE_HERE, transformed

LOOK_EVERY = 64 * 1024 * 1024
"""Bytes between two looks at the node's room."""
SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What one upload must keep to, bytes of one file; and the memory that all share."""

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

    @contextmanager
    def passing(
        self, body: AsyncIterator[Bytes], passage: FilePassage
    ) -> Iterator[AsyncIterator[Bytes]]:
        """A file's body in blocks, as the node is to have it; each is hashed and encrypted in
        threads while the next one is being received, and may be read until the next one is asked
        for.

        Reading raises `PayloadTooLarge`, `QuotaExceeded`, `KeyLimitReached`,
        `InsufficientStorage`: each before the block that would be too much is passed on.
        """
        room, encryptor = self._limits.room, passage.encryptor
        with room.streaming():
            plain = self._plain(body, passage)
            if encryptor is None:
                yield plain
            else:
                yield transformed(
                    plain,
                    encryptor.update,
                    encryptor.finish,
                    self._threads,
                    ahead=lambda: not room.is_crowded(),
                )

    async def _plain(
        self, body: AsyncIterator[Bytes], passage: FilePassage
    ) -> AsyncIterator[Bytes]:
        loop = asyncio.get_running_loop()
        await self._allow(passage)
        async for block in blocks(body, self._limits):
            passage.size += len(block)
            if passage.size > self._limits.max_file_size:
                raise PayloadTooLarge(f"A file may have {self._limits.max_file_size} bytes.")
            await self._allow(passage)
            if len(passage.head) < SNIFFED_BYTES:
                passage.head += block[: SNIFFED_BYTES - len(passage.head)]
            if len(block) <= DONE_HERE:
                passage.digest.update(block)
                yield block
            else:
                hashing = loop.run_in_executor(self._threads, passage.digest.update, block)
                yield block
                await hashing  # the block is given back by asking for the next one
                del hashing
            del block  # who waits for the next one holds none

    async def _allow(self, passage: FilePassage) -> None:
        """Reserve what the file has come to."""
        more, passage.allowed = passage.stored_size - passage.allowed, passage.stored_size
        before, self.received = self.received, self.received + more
        covered = self._lease.covered
        if covered is not None and self.received > covered:
            await to_thread.run_sync(self._leases.cover, self._lease, self.received)
        if before // LOOK_EVERY != self.received // LOOK_EVERY:
            await self._capacity.require(0)


class HashedBody:
    """A body whose bytes are hashed as they are read, at its end too where whoever reads it stops
    before."""

    def __init__(self, body: AsyncIterator[Bytes], limits: IntakeLimits) -> None:
        self._body = aiter(body)
        self._limits = limits
        self._hash = hashlib.sha256()

    def __aiter__(self) -> AsyncIterator[Bytes]:
        return self

    async def __anext__(self) -> Bytes:
        chunk = await anext(self._body)
        self._hash.update(chunk)
        return chunk

    async def to_its_end(self) -> bytes:
        """Read what is left. Returns the SHA-256 of all of it; raises `PayloadTooLarge` for more
        than a file may have."""
        size = 0
        async for block in blocks(self, self._limits):
            size += len(block)
            if size > self._limits.max_file_size:
                raise PayloadTooLarge(f"A file may have {self._limits.max_file_size} bytes.")
        return self._hash.digest()


async def blocks(body: AsyncIterator[Bytes], limits: IntakeLimits) -> AsyncIterator[Bytes]:
    """The body in larger pieces: not much smaller than a block should be, and those that aren't as
    they are. Small ones are copied, as each may be read until the next one is asked for only."""
    gathered = bytearray()
    chunks = aiter(body)
    while True:
        chunk = await anext(chunks, None)
        enough = limits.room.share() // 2
        whole = chunk if chunk is not None and len(chunk) >= min(enough, WHOLE_BYTES) else None
        if chunk is not None and whole is None:
            gathered += chunk
        # What came before a whole block is not joined to it, which would copy that.
        if gathered and (len(gathered) >= enough or whole is not None or chunk is None):
            yield gathered
            gathered = bytearray()
        if chunk is None:
            return
        if whole is not None:
            yield whole
        del chunk, whole  # who waits for the next one holds none
