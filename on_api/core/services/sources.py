"""What a file's bytes are to whoever serves them: size, type, ETag, and how to open a part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from on_api.core.errors import BadRequest
from on_api.core.ipfs.client import IpfsNode
from on_api.core.models import File
from on_api.core.models.file import PRIVATE

Opener = Callable[[int, int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens `length` bytes from `offset` on, complete or failing: see `IpfsNode.read`."""


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of one file as they are served. `size` in bytes; `etag` strong, in its quotes."""

    name: str
    size: int
    media_type: str
    etag: str
    open: Opener


def source_of(file: File, node: IpfsNode, passphrase: str | None = None) -> Source:
    """The source of a file's bytes. Called in a thread: a `passphrase` may need a slow derivation.

    Raises `BadRequest` for what can't be opened this way. A public file needs no passphrase.
    """
    if file.visibility == PRIVATE:
        raise BadRequest("Private files are not offered yet.")
    return Source(
        name=file.name,
        size=file.size,
        media_type=file.media_type,
        etag=f'"{file.cid}"',
        open=lambda offset, length: node.read(file.cid, offset=offset, length=length),
    )
