"""Following whole DAGs."""

from __future__ import annotations

from collections.abc import AsyncIterator

from on_api.core.ipfs.cid import Cid
from on_api.core.ipfs.dag import Walk


async def follow(root: Cid, blocks: AsyncIterator[tuple[Cid, bytes]]) -> tuple[int, int]:
    """Check that these blocks are the whole DAG; returns how many and how many bytes."""
    walk = Walk(root)
    async for cid, block in blocks:
        walk.take(cid, block)
    walk.end()
    return walk.blocks, walk.bytes
