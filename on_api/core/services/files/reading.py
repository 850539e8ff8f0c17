"""Reading of a file's bytes in the form that a reader may have: plain, decrypted on the way, or the
age file itself. Endpoints, shares and jobs all read here.

Permissions and counting are up to the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from on_api.core.crypto.age import AgeError, Layout, RangeDecryptor, Unlocked
from on_api.core.errors import ContentDamaged
from on_api.core.ipfs.port import IpfsNode
from on_api.core.models import File
from on_api.core.models.file import FOR_RECIPIENTS, PRIVATE
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.services.files.private_files import PrivateFiles
from on_api.core.streams.blocks import Bytes
from on_api.core.streams.pipeline import gathered, transformed

AGE_MEDIA_TYPE = "application/octet-stream"
"""Media type of age files, which have no registered one."""
AGE_SUFFIX = ".age"

RangeOpener = Callable[[int, int], AbstractAsyncContextManager[AsyncIterator[Bytes]]]
"""Opens `length` bytes at `offset`. Entering raises errors that can be known before the first byte;
the iterator raises rather than end too soon, or return a byte that isn't authentic."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One representation of a file, ready to be read."""

    size: int
    """Bytes of the whole representation."""
    etag: str
    """Strong ETag, with its quotes: differs for other bytes and for another representation."""
    name: str
    media_type: str
    private: bool
    """True if no copy may be kept on the way (`no-store`)."""
    open: RangeOpener


class FileReader:
    """Reader of files in the right representation. `threads` decrypt."""

    def __init__(self, node: IpfsNode, private_files: PrivateFiles, threads: Executor) -> None:
        self._node = node
        self._private_files = private_files
        self._threads = threads

    async def read(
        self,
        file: File,
        *,
        raw: bool = False,
        passphrase: str | None = None,
        asker: Asker | None = None,
    ) -> Reading:
        """Return the file as its owner sees it; with `raw` a private file's age file, as stored on
        the node. Files that the server can't open are always raw. A passphrase needs an `asker`.

        No session may be open. Raises `ContentDamaged` and what `PrivateFiles.unlock` raises.
        """
        if file.visibility != PRIVATE:
            return self._as_it_lies(file, file.size, file.name, file.media_type)
        if file.sealed_size is None:
            raise ContentDamaged
        if raw or file.sealed_for == FOR_RECIPIENTS:
            name = file.name + AGE_SUFFIX
            return self._as_it_lies(file, file.sealed_size, name, AGE_MEDIA_TYPE)
        unlocked = await self._private_files.unlock(file, passphrase, asker)
        try:
            layout = unlocked.layout(file.sealed_size)
        except AgeError as error:
            raise ContentDamaged from error
        if layout.plaintext_size != file.size:
            raise ContentDamaged
        cid = file.cid
        return Reading(
            size=file.size,
            etag=f'"{cid}.plain"',
            name=file.name,
            media_type=file.media_type,
            private=True,
            open=lambda offset, length: self._decrypted(cid, unlocked, layout, offset, length),
        )

    def _as_it_lies(self, file: File, size: int, name: str, media_type: str) -> Reading:
        cid = file.cid
        return Reading(
            size=size,
            etag=f'"{cid}"',
            name=name,
            media_type=media_type,
            private=file.visibility == PRIVATE,
            open=lambda offset, length: self._node.read(cid, offset=offset, length=length),
        )

    @asynccontextmanager
    async def _decrypted(
        self, cid: str, unlocked: Unlocked, layout: Layout, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[Bytes]]:
        # The plaintext's end was recorded when it was encrypted, and the node is not trusted for
        # it: so the last chunk proves nothing for a range that doesn't reach it.
        span = layout.span(offset, length, from_end=False)
        decryptor = RangeDecryptor(unlocked, span)
        async with self._node.read(
            cid, offset=span.chunks.start, length=span.chunks.size
        ) as chunks:
            plaintext = self._checked(
                transformed(
                    gathered(chunks),
                    decryptor.update,
                    decryptor.finish,
                    self._threads,
                )
            )
            # The first piece is read before the answer begins: damage there is still reported as an
            # error.
            yield _behind(await anext(plaintext, b""), plaintext)

    async def _checked(self, plaintext: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        try:
            async for piece in plaintext:
                yield piece
        except AgeError as error:
            raise ContentDamaged from error


async def _behind(first: Bytes, rest: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
    if first:
        yield first
    async for piece in rest:
        yield piece
