"""CARs (content-addressable archives): the blocks of DAGs in one stream, each behind its CID.

`CarReader` reads versions 1 and 2 of the IPLD specification, and yields no block whose hash it has
not verified; `car_header` and `car_section` write version 1. A CAR of version 1 is a row of
sections, each a varint with its length and then its bytes: first the header, which lists the roots,
then the blocks. Version 2 wraps one of version 1 (here: the inner CAR) and may add an index.

No I/O happens here. What is read is untrusted: every length is bounded before it is used.
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
"""Bytes of a block at most: nodes exchange no larger one (Bitswap's limit), so that nobody could
fetch it from ours."""
MAX_HEADER_BYTES = 64 * 1024
"""Bytes of the header of version 1 at most, its roots included."""
MAX_CID_BYTES = 256
"""Bytes of a CID at most, where the length of its section is bounded."""
MAX_PADDING_BYTES = 1024 * 1024
"""Bytes at most between the header of version 2 and the inner CAR."""

_V2_PRAGMA = b"\xa1\x67version\x02"
"""First section of every CAR of version 2: `{"version": 2}` in DAG-CBOR."""
_V2_HEADER_BYTES = 40
_INDEX_ALLOWANCE_BYTES = 1024 * 1024
"""Bytes that an index, with the padding before it, may have more than the inner CAR has."""

# By the code that a CID gives for its hash function.
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
    """Error: the stream is not a CAR, is cut, or has a block that can't be accepted."""


class WrongBlockError(CarError):
    """Error: a block does not have the hash that its CID names."""


class CarReader:
    """Reader of one CAR of either version, which comes in chunks of any size. `roots` is set once
    the first block was requested from `blocks`.

    An index is skipped: it proves nothing. A block whose CID contains it (an identity CID) is
    checked, but not yielded: whoever has the CID has the block.
    """

    def __init__(self, chunks: AsyncIterator[Bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self._ended = False
        self._inner_bytes_left: int | None = None
        """Bytes of the inner CAR that were not taken yet; None for a CAR of version 1."""
        self.roots: Sequence[Cid] = ()

    async def blocks(self) -> AsyncGenerator[tuple[Cid, bytes]]:
        """Yield every block with its CID, verified. May be called once.

        Raises `CarError`, also after the last block if something follows that doesn't belong there.
        """
        header = await self._section(MAX_HEADER_BYTES, "header")
        trailing_limit: int | None = None
        if header == _V2_PRAGMA:
            trailing_limit = await self._enter_inner_car()
            header = await self._section(MAX_HEADER_BYTES, "header")
        self.roots = _roots(header)
        while not await self._at_end():
            section = await self._section(MAX_CID_BYTES + MAX_BLOCK_BYTES, "block")
            cid, block = _verified_block(section)
            if cid.inline is None:
                yield cid, block
        if trailing_limit is not None:
            await self._skip_rest(trailing_limit)

    async def _enter_inner_car(self) -> int:
        """Read the header of version 2, and skip to the start of the inner CAR. Returns the number
        of bytes that may follow the inner CAR: none without an index."""
        v2_header = await self._take(_V2_HEADER_BYTES, "header")
        offset, size, index_offset = struct.unpack("<16x3Q", v2_header)
        # The pragma is a section too: one byte with its length comes before it.
        first_offset = 1 + len(_V2_PRAGMA) + _V2_HEADER_BYTES
        if not first_offset <= offset <= first_offset + MAX_PADDING_BYTES:
            raise CarError(f"the inner CAR can't begin at byte {offset}")
        if index_offset != 0 and index_offset < offset + size:
            raise CarError("the index overlaps the blocks")
        await self._take(offset - first_offset, "header")
        self._inner_bytes_left = size
        return 0 if index_offset == 0 else _INDEX_ALLOWANCE_BYTES + size

    async def _skip_rest(self, limit: int) -> None:
        """Read the stream to its end, and drop what comes. Raises `CarError` if that is more than
        `limit` bytes."""
        while True:
            limit -= len(self._buffer)
            self._buffer.clear()
            if limit < 0:
                raise CarError("there is data after the last block")
            if not await self._fill():
                return

    async def _section(self, limit: int, what: str) -> bytes:
        """Read the next section, of at most `limit` bytes. Errors call it `what`."""
        length = shift = 0
        while True:
            byte = (await self._take(1, what))[0]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 28:  # five bytes are enough for every length that is allowed
                raise CarError(f"the {what} is too long")
        if not 0 < length <= limit:
            raise CarError(f"the {what} has {length} bytes, at most {limit} are allowed")
        return await self._take(length, what)

    async def _take(self, size: int, what: str) -> bytes:
        """Return the next `size` bytes. Raises `CarError` if the stream or the inner CAR has fewer;
        the error calls them `what`."""
        if self._inner_bytes_left is not None:
            if size > self._inner_bytes_left:
                raise CarError(f"the inner CAR ends in the middle of a {what}")
            self._inner_bytes_left -= size
        while len(self._buffer) < size:
            if not await self._fill():
                raise CarError(f"the stream ends in the middle of a {what}")
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _at_end(self) -> bool:
        """Return whether the last block was taken: the inner CAR or, in version 1, the stream is at
        its end."""
        if self._inner_bytes_left is not None:
            return self._inner_bytes_left == 0
        return not self._buffer and not await self._fill()

    async def _fill(self) -> bool:
        """Append the stream's next chunk to the buffer. Returns False at the end of the stream."""
        while not self._ended:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._ended = True
            elif chunk:  # an empty one is not the end
                self._buffer += chunk
                return True
        return False


def car_header(*roots: Cid) -> bytes:
    """Return the header, as a section, with which a CAR of version 1 begins."""
    # `{"roots": [42(h'00' + CID), …], "version": 1}`: the order of keys and the tag 42 for links
    # are DAG-CBOR's.
    links = [b"\xd8\x2a" + _bytes_head(len(raw := b"\x00" + root.raw)) + raw for root in roots]
    header = b"\xa2\x65roots" + _array_head(len(links)) + b"".join(links) + b"\x67version\x01"
    return varint(len(header)) + header


def car_section(cid: Cid, block: bytes) -> bytes:
    """Return one block as the section of a CAR that holds it. Nothing is verified."""
    return varint(len(cid.raw) + len(block)) + cid.raw + block


def check_block(cid: Cid, data: bytes) -> None:
    """Verify that `data` is the block of that CID. Raises `WrongBlockError` if it is not, and
    `CarError` if it is too large or the CID's hash function isn't known here."""
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
    """Return the roots that a header of version 1 lists. Raises `CarError` for another header."""
    try:
        parsed = libipld.decode_dag_cbor(header)
    except (RecursionError, ValueError) as error:
        raise CarError("the header can't be decoded") from error
    roots = parsed.get("roots") if isinstance(parsed, dict) else None
    if not isinstance(roots, list) or parsed.get("version") != 1:
        raise CarError("the header is not that of a CAR of version 1")
    try:
        return [Cid.from_bytes(_checked_bytes(root)) for root in roots]
    except BadRequest as error:
        raise CarError("a root is not a valid CID") from error


def _checked_bytes(root: object) -> bytes:
    """Return a root from a decoded header if it is bytes, else raise `CarError`. `bytes(root)`
    would accept a number, and allocate that many zeros."""
    if not isinstance(root, bytes):
        raise CarError("a root is not a valid CID")
    return root


def _verified_block(section: bytes) -> tuple[Cid, bytes]:
    """Split a section into CID and block, and verify the block. Raises `CarError`."""
    try:
        cid, cid_length = Cid.at_start_of(section)
    except (BadRequest, IndexError) as error:
        raise CarError("a block has no valid CID") from error
    data = section[cid_length:]
    check_block(cid, data)
    return cid, data


def _bytes_head(length: int) -> bytes:
    """Return the CBOR head of a byte string of 24 to 255 bytes, as a CID with a hash has."""
    return bytes([0x58, length])


def _array_head(length: int) -> bytes:
    """Return the CBOR head of a list of up to 65,535 members."""
    if length < 24:
        return bytes([0x80 | length])
    return bytes([0x98, length]) if length < 256 else b"\x99" + length.to_bytes(2, "big")
