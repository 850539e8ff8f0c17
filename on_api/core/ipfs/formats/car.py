"""CARs: blocks in a stream (the IPLD specifications of version 1 and 2). Read in both versions,
every block's hash verified; written in version 1.

Pure: no I/O. The input is untrusted: every length is bounded before it is used.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import libipld

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.cid import Cid, varint
from on_api.core.streams.blocks import Bytes

MAX_BLOCK_BYTES = 2 * 1024 * 1024
"""Bytes of a block at most: Bitswap transfers no larger one, so other nodes could not fetch it from
us."""
MAX_HEADER_BYTES = 64 * 1024
MAX_CID_BYTES = 256
MAX_PADDING_BYTES = 1024 * 1024
"""Bytes between the header of version 2 and the inner CAR of version 1."""

_V2_PRAGMA = b"\xa1\x67version\x02"
_V2_HEADER_BYTES = 40
_FIRST_INDEX_BYTES = 1024 * 1024

_HASHES: dict[int, Callable[[bytes], Any]] = {
    0x11: hashlib.sha1,  # used by old git objects
    0x12: hashlib.sha256,
    0x13: hashlib.sha512,
    0x14: hashlib.sha3_512,
    0x15: hashlib.sha3_384,
    0x16: hashlib.sha3_256,
    0x17: hashlib.sha3_224,
    0xB220: lambda data: hashlib.blake2b(data, digest_size=32),
    0xB240: hashlib.blake2b,
}


class CarError(Exception):
    """The stream is not a CAR, is cut, or holds a block that can't be accepted."""


class WrongBlockError(CarError):
    """A block does not match its CID."""


class CarReader:
    """Reads one CAR of either version. `roots` is set once the first block was requested.

    Of version 2 the inner CAR of version 1 is read; its index, which proves nothing, is skipped.
    Blocks of identity CIDs are checked and left out: the CID is the block.
    """

    def __init__(self, chunks: AsyncIterator[Bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self._ended = False
        self._left: int | None = None
        """Bytes of the inner CAR that are still to come; None for a CAR of version 1."""
        self.roots: Sequence[Cid] = ()

    async def blocks(self) -> AsyncGenerator[tuple[Cid, bytes]]:
        """Yield every block, its hash verified. Raises `CarError`."""
        header = await self._section(MAX_HEADER_BYTES, "header")
        index: int | None = None
        if header == _V2_PRAGMA:
            index = await self._enter_version_2()
            header = await self._section(MAX_HEADER_BYTES, "header")
        self.roots = _roots(header)
        while not await self._at_end():
            section = await self._section(MAX_CID_BYTES + MAX_BLOCK_BYTES, "block")
            cid, block = _block(section)
            if cid.inline is None:
                yield cid, block
        if index is not None:
            await self._pass_over(index)

    async def _enter_version_2(self) -> int:
        """Skip to the start of the inner CAR. Returns how many bytes may follow it."""
        fixed = await self._take(_V2_HEADER_BYTES, "header")
        offset, size, index_offset = struct.unpack("<16x3Q", fixed)
        before = 1 + len(_V2_PRAGMA) + _V2_HEADER_BYTES
        if not before <= offset <= before + MAX_PADDING_BYTES:
            raise CarError(f"the inner CAR can't begin at byte {offset}")
        if index_offset != 0 and index_offset < offset + size:
            raise CarError("the index overlaps the blocks")
        await self._take(offset - before, "header")
        self._left = size
        return 0 if index_offset == 0 else _FIRST_INDEX_BYTES + size

    async def _pass_over(self, limit: int) -> None:
        """Skip the rest of the stream, at most `limit` bytes. Raises `CarError` if there is
        more."""
        while True:
            limit -= len(self._buffer)
            self._buffer.clear()
            if limit < 0:
                raise CarError("there is data after the last block")
            if not await self._fill():
                return

    async def _section(self, limit: int, what: str) -> bytes:
        length = shift = 0
        while True:
            byte = (await self._take(1, what))[0]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 28:
                raise CarError(f"the {what} is too long")
        if not 0 < length <= limit:
            raise CarError(f"the {what} has {length} bytes, at most {limit} are allowed")
        return await self._take(length, what)

    async def _take(self, size: int, what: str) -> bytes:
        if self._left is not None:
            if size > self._left:
                raise CarError(f"the inner CAR ends in the middle of a {what}")
            self._left -= size
        while len(self._buffer) < size:
            if not await self._fill():
                raise CarError(f"the stream ends in the middle of a {what}")
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _at_end(self) -> bool:
        if self._left is not None:
            return self._left == 0
        return not self._buffer and not await self._fill()

    async def _fill(self) -> bool:
        while not self._ended:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._ended = True
            elif chunk:  # an empty one is not the end
                self._buffer += chunk
                return True
        return False


def car_header(*roots: Cid) -> bytes:
    """Return the header of a CARv1."""
    # `{"roots": [42(h'00' + CID), …], "version": 1}`, as DAG-CBOR orders its keys.
    links = [b"\xd8\x2a" + _bytes_head(len(raw := b"\x00" + root.raw)) + raw for root in roots]
    header = b"\xa2\x65roots" + _array_head(len(links)) + b"".join(links) + b"\x67version\x01"
    return varint(len(header)) + header


def car_section(cid: Cid, block: bytes) -> bytes:
    """Return one block as a section of a CAR."""
    return varint(len(cid.raw) + len(block)) + cid.raw + block


def check_block(cid: Cid, data: bytes) -> None:
    """Raise `WrongBlockError` unless this is the block of that CID; `CarError` when it is too large
    or its hash function isn't known."""
    if len(data) > MAX_BLOCK_BYTES:
        raise CarError(f"block {cid} exceeds {MAX_BLOCK_BYTES} bytes")
    if cid.inline is not None:
        digest = data
    elif (hasher := _HASHES.get(cid.hash_code)) is not None:
        digest = hasher(data).digest()[: len(cid.digest)]
    else:
        raise CarError(f"the hash function of block {cid} is not supported")
    if digest != cid.digest:
        raise WrongBlockError(f"block {cid} does not match its CID")


def _roots(header: bytes) -> Sequence[Cid]:
    try:
        parsed = libipld.decode_dag_cbor(header)
    except (RecursionError, ValueError) as error:
        raise CarError("the header can't be decoded") from error
    roots = parsed.get("roots") if isinstance(parsed, dict) else None
    if not isinstance(roots, list) or parsed.get("version") != 1:
        raise CarError("the header is not that of a CAR of version 1")
    try:
        return [Cid.from_bytes(_bytes_of(root)) for root in roots]
    except BadRequest as error:
        raise CarError("a root is not a valid CID") from error


def _bytes_of(root: object) -> bytes:
    """Return a root's bytes. Never `bytes(root)`, which makes that many zeros of a number."""
    if not isinstance(root, bytes):
        raise CarError("a root is not a valid CID")
    return root


def _block(section: bytes) -> tuple[Cid, bytes]:
    try:
        cid, length = Cid.at_start_of(section)
    except (BadRequest, IndexError) as error:
        raise CarError("a block has no valid CID") from error
    data = section[length:]
    check_block(cid, data)
    return cid, data


def _bytes_head(length: int) -> bytes:
    return bytes([0x58, length])


def _array_head(length: int) -> bytes:
    if length < 24:
        return bytes([0x80 | length])
    return bytes([0x98, length]) if length < 256 else b"\x99" + length.to_bytes(2, "big")
