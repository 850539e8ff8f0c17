"""Links between blocks: those in a block of each codec, and following a DAG block by block.

Pure: no I/O. Blocks are untrusted, so all work is bounded by the block's own size and nothing
recurses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.cid import DAG_PB, RAW, Cid, read_varint

DAG_CBOR = 0x71
DAG_JSON = 0x0129
_LINKLESS = {RAW, 0x51, 0x0200}  # plain CBOR and JSON have no links
MAX_NESTING = 1024
"""Depth to which the values within a block may be nested."""
MAX_ITEMS = 2**17
"""Number of values within a block, keys included."""

_CID_TAG = 42
_PB_DATA = 1
_PB_LINKS = 2
_PB_LINK_HASH = 1
_UNIXFS_TYPE, _UNIXFS_DATA, _UNIXFS_FILE_SIZE = 1, 2, 3
_UNIXFS_RAW, _UNIXFS_FILE = 0, 2


class DagError(Exception):
    """A block is not of its codec, or not the one that the DAG needs next."""


class UnknownCodecError(DagError):
    """Blocks of this codec can't be parsed here."""


class TooComplexError(UnknownCodecError):
    """A block has too many values, or they are nested too deep: a sign of an attack."""


def links_of(codec: int, block: bytes) -> list[Cid]:
    """Return the CIDs that a block links to, in order. Raises `DagError` for a block that is not
    well formed, `UnknownCodecError` for a codec that isn't known here."""
    try:
        if codec in _LINKLESS:
            return []
        if codec == DAG_PB:
            return [Cid.from_bytes(raw) for raw in _dag_pb_links(block)]
        if codec == DAG_CBOR:
            return [Cid.from_bytes(raw) for raw in _dag_cbor_links(block)]
        if codec == DAG_JSON:
            return [Cid.from_text(text) for text in _dag_json_links(block)]
    except (BadRequest, IndexError, ValueError) as error:
        raise DagError("a block is damaged") from error
    raise UnknownCodecError(f"codec {codec:#x}")


def file_size_of(codec: int, block: bytes) -> int | None:
    """Return the size in bytes of the UnixFS file whose root is this block, as the root states it;
    None if it is not a file. Raises `DagError` for a block that is not well formed."""
    if codec == RAW:
        return len(block)
    if codec != DAG_PB:
        return None
    try:
        data = dict(_fields(block)).get(_PB_DATA)
        unixfs = dict(_fields(data)) if isinstance(data, bytes) else {}
    except (IndexError, ValueError) as error:
        raise DagError("a block is damaged") from error
    if unixfs.get(_UNIXFS_TYPE) not in {_UNIXFS_RAW, _UNIXFS_FILE}:
        return None
    inner = unixfs.get(_UNIXFS_DATA, b"")
    size = unixfs.get(_UNIXFS_FILE_SIZE, len(inner) if isinstance(inner, bytes) else 0)
    return size if isinstance(size, int) else None


class Walk:
    """Follows a DAG as its blocks come: depth first, each block once, their hashes already
    verified.

    `wanted` is the block that must come next, None when the DAG is complete. Memory grows by a CID
    for each distinct block.
    """

    def __init__(self, root: Cid) -> None:
        self.blocks = 0
        self.bytes = 0
        self._path = [iter((root,))]
        self._seen: set[Cid] = set()
        self.wanted = self._next()

    def take(self, cid: Cid, block: bytes) -> None:
        """Take the next block. Raises `DagError` when it is another one or not well formed."""
        if self.wanted is None:
            raise DagError("there are blocks that do not belong to the DAG")
        if cid != self.wanted:
            raise DagError(f"block {self.wanted} is missing")
        self.blocks += 1
        self.bytes += len(block)
        self._path.append(iter(links_of(cid.codec, block)))
        self.wanted = self._next()

    def end(self) -> None:
        """Finish. Raises `DagError` when blocks are missing."""
        if self.wanted is not None:
            raise DagError(f"block {self.wanted} is missing")

    def _next(self) -> Cid | None:
        """Return the next block that was not seen yet; identity CIDs are resolved here."""
        while self._path:
            cid = next(self._path[-1], None)
            if cid is None:
                self._path.pop()
            elif (inline := cid.inline) is not None:
                self._path.append(iter(links_of(cid.codec, inline)))
            elif cid not in self._seen:
                self._seen.add(cid)
                return cid
        return None


def _dag_pb_links(block: bytes) -> Iterator[bytes]:
    """Yield `PBNode.Links[].Hash` (the dag-pb specification)."""
    for number, link in _fields(block):
        if number == _PB_LINKS and isinstance(link, bytes):
            hashes = [value for field, value in _fields(link) if field == _PB_LINK_HASH]
            if len(hashes) != 1 or not isinstance(hashes[0], bytes):
                raise ValueError("a link without a hash")
            yield hashes[0]


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the fields of a protobuf message: their numbers and values, varint or
    length-delimited."""
    position = fields = 0
    while position < len(message):
        fields += 1
        if fields > MAX_ITEMS:
            raise TooComplexError("a block has too many fields")
        key, position = read_varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = read_varint(message, position)
            yield key >> 3, value
        elif kind == 2:  # bytes
            length, position = read_varint(message, position)
            if position + length > len(message):
                raise ValueError("a field is cut")
            yield key >> 3, message[position : position + length]
            position += length
        else:
            raise ValueError("a field of another type")


def _dag_cbor_links(block: bytes) -> Iterator[bytes]:
    """Yield the byte strings under tag 42 (the DAG-CBOR specification; RFC 8949)."""
    position, is_link, items = 0, False, 0
    still_open = [1]
    """Number of missing items of each incomplete value, from the outside in."""
    while position < len(block):
        head = block[position]
        major, value = head >> 5, head & 31
        position += 1
        if 24 <= value <= 27:
            width = 1 << (value - 24)
            if position + width > len(block):
                raise ValueError("an item is cut")
            value = int.from_bytes(block[position : position + width], "big")
            position += width
        elif value > 27:
            raise ValueError("an item of indefinite length")
        items += 1
        still_open[-1] -= 1
        if is_link and major != 2:
            raise ValueError("a link that holds no bytes")
        if major in {2, 3}:
            if position + value > len(block):
                raise ValueError("an item is cut")
            if is_link:
                if block[position] != 0:
                    raise ValueError("a link without its prefix")
                yield block[position + 1 : position + value]
            position += value
        elif major == 4:
            still_open.append(value)
        elif major == 5:
            still_open.append(2 * value)
        elif major == 6:
            if value != _CID_TAG:
                raise ValueError("a tag that is no link")
            still_open.append(1)
        is_link = major == 6
        while still_open and still_open[-1] == 0:
            still_open.pop()
        if not still_open:
            break
        if items > MAX_ITEMS or len(still_open) > MAX_NESTING:
            raise TooComplexError("a block has too many values, or they are nested too deep")
    if still_open or position != len(block):
        raise ValueError("items are missing, or too many")


def _dag_json_links(block: bytes) -> Iterator[str]:
    """Yield the values of `{"/": "CID"}` (the DAG-JSON specification)."""
    try:
        pending: list[object] = [json.loads(block)]
    except RecursionError as error:
        raise TooComplexError("a block is nested too deep") from error
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if len(item) == 1 and isinstance(link := item.get("/"), str):
                yield link
            else:
                pending.extend(reversed(item.values()))
        elif isinstance(item, list):
            pending.extend(reversed(item))
