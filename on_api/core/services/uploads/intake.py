"""Intake: the bytes of an upload on their way from the client to the node: gathered, limited,
hashed, encrypted if private, never stored.

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
from on_api.core.streams.blocks import WHOLE_BYTES, BufferPool, Bytes
from on_api.core.streams.pipeline import DONE_HERE_BYTES, transformed

LOOK_EVERY_BYTES = 64 * 1024 * 1024
"""Bytes between two checks of the node's free space."""
SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Limit in bytes for one file; and the memory that all uploads share."""

    max_file_size: int
    pool: BufferPool = field(default_factory=BufferPool)


class FilePassage:
    """State of one file passing through. After its last byte `digest` and `head` (its first bytes)
    are known, both of the plaintext. With an `encryptor` the node gets the encrypted bytes."""

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
    """Intake of all files under one lease."""

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
        """Provide a file's body in blocks, as the node is to store it. Each is hashed and encrypted
        in threads while the next one is received, and is valid only until the next one is asked
        for.

        Reading raises `PayloadTooLarge`, `QuotaExceeded`, `KeyLimitReached`, `InsufficientStorage`,
        each before the excess block is passed on.
        """
        pool, encryptor = self._limits.pool, passage.encryptor
        with pool.streaming():
            plaintext = self._plaintext(body, passage)
            if encryptor is None:
                yield plaintext
            else:
                yield transformed(
                    plaintext,
                    encryptor.update,
                    encryptor.finish,
                    self._threads,
                    ahead=lambda: not pool.is_crowded(),
                )

    async def _plaintext(
        self, body: AsyncIterator[Bytes], passage: FilePassage
    ) -> AsyncIterator[Bytes]:
        loop = asyncio.get_running_loop()
        await self._allow(passage)
        async for block in blocks(body, self._limits):
            passage.size += len(block)
            if passage.size > self._limits.max_file_size:
                raise PayloadTooLarge(f"The file exceeds {self._limits.max_file_size} bytes.")
            await self._allow(passage)
            if len(passage.head) < SNIFFED_BYTES:
                passage.head += block[: SNIFFED_BYTES - len(passage.head)]
            if len(block) <= DONE_HERE_BYTES:
                passage.digest.update(block)
                yield block
            else:
                hashing = loop.run_in_executor(self._threads, passage.digest.update, block)
                yield block
                await hashing  # asking for the next block releases this one
                del hashing
            del block  # not held while waiting for the next one

    async def _allow(self, passage: FilePassage) -> None:
        """Reserve the bytes that the file has reached."""
        more, passage.allowed = passage.stored_size - passage.allowed, passage.stored_size
        before, self.received = self.received, self.received + more
        covered = self._lease.covered
        if covered is not None and self.received > covered:
            await to_thread.run_sync(self._leases.cover, self._lease, self.received)
        if before // LOOK_EVERY_BYTES != self.received // LOOK_EVERY_BYTES:
            await self._capacity.require(0)


class HashedBody:
    """Body that is hashed as it is read, to its end even if its reader stops before."""

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
        """Read the rest. Returns the SHA-256 of the whole body; raises `PayloadTooLarge` for more
        than a file may have."""
        size = 0
        async for block in blocks(self, self._limits):
            size += len(block)
            if size > self._limits.max_file_size:
                raise PayloadTooLarge(f"The file exceeds {self._limits.max_file_size} bytes.")
        return self._hash.digest()


async def blocks(body: AsyncIterator[Bytes], limits: IntakeLimits) -> AsyncIterator[Bytes]:
    """Yield the body in larger pieces. Pieces that are nearly as large as a block should be are
    passed on as they are. Small ones are copied, as each is valid only until the next one is asked
    for."""
    gathered = bytearray()
    chunks = aiter(body)
    while True:
        chunk = await anext(chunks, None)
        enough = limits.pool.share() // 2
        whole = chunk if chunk is not None and len(chunk) >= min(enough, WHOLE_BYTES) else None
        if chunk is not None and whole is None:
            gathered += chunk
        # Earlier bytes are not joined to a whole block, which would copy it.
        if gathered and (len(gathered) >= enough or whole is not None or chunk is None):
            yield gathered
            gathered = bytearray()
        if chunk is None:
            return
        if whole is not None:
            yield whole
        del chunk, whole  # not held while waiting for the next one
