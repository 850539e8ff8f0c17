"""Building small DAGs, and walking whole ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from on_api.core.ipfs.formats.car import car_header, car_section
from on_api.core.ipfs.formats.cid import RAW, SHA2_256, Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR, Walk

Blocks = Mapping[Cid, bytes]


def block_of(data: bytes, codec: int = RAW) -> tuple[Cid, bytes]:
    """Return a block and its CID."""
    return Cid(codec, SHA2_256, hashlib.sha256(data).digest()), data


def linking(*links: Cid) -> tuple[Cid, bytes]:
    """Return a DAG-CBOR block that is a list of links, and its CID."""
    parts = [_head(0x80, len(links))]
    for link in links:
        raw = b"\x00" + link.raw
        parts.append(b"\xd8\x2a" + _head(0x40, len(raw)) + raw)
    return block_of(b"".join(parts), DAG_CBOR)


def _head(kind: int, length: int) -> bytes:
    """Encode the head of a list or of bytes, as short as DAG-CBOR demands."""
    if length < 24:
        return bytes([kind | length])
    if length < 256:
        return bytes([kind | 24, length])
    return bytes([kind | 25]) + length.to_bytes(2, "big")


def tree(branches: int = 3, leaves: int = 4, size: int = 1000) -> tuple[Cid, Blocks]:
    """Return a root, and all blocks of its DAG (branches, leaves of random bytes), depth first."""
    blocks: dict[Cid, bytes] = {}
    tops = []
    for _ in range(branches):
        below = dict(block_of(os.urandom(size)) for _ in range(leaves))
        top, block = linking(*below)
        blocks |= {top: block, **below}
        tops.append(top)
    root, block = linking(*tops)
    return root, {root: block, **blocks}


def car_of(root: Cid, blocks: Blocks) -> bytes:
    """Return the DAG below `root` as a CAR like a gateway's: depth first, each block once. It ends
    at the first missing block."""
    walk = Walk(root)
    parts = [car_header(root)]
    while (wanted := walk.wanted) is not None and wanted in blocks:
        parts.append(car_section(wanted, blocks[wanted]))
        walk.take(wanted, blocks[wanted])
    return b"".join(parts)


def car_with(roots: Sequence[Cid], blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Return a CAR with any blocks in any order."""
    return car_header(*roots) + b"".join(car_section(*each) for each in blocks)


async def follow(root: Cid, blocks: AsyncIterator[tuple[Cid, bytes]]) -> tuple[int, int]:
    """Check that these blocks are the whole DAG; return their number, and their bytes."""
    walk = Walk(root)
    async for cid, block in blocks:
        walk.take(cid, block)
    walk.end()
    return walk.blocks, walk.bytes
