"""An IPFS node in memory with the same behaviour, CIDs included: for tests that need no daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from on_api.core.errors import NodeError
from on_api.core.ipfs.client import Added, NodeVersion, PinStatus, RepoStat
from on_api.core.ipfs.unixfs import build_file

SLICE = 64 * 1024


class MemoryNode:
    """Keeps whole files in memory; everything else is as `IpfsNode` says."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._pins: dict[str, str] = {}

    async def add(self, source: AsyncIterator[bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        data = b"".join([chunk async for chunk in source])
        root = build_file(data)
        self._files[root.cid] = data
        self._pins[root.cid] = pin_name
        return Added(cid=root.cid, size=len(data), dag_size=root.dag_size)

    @asynccontextmanager
    async def read(
        self, cid: str, *, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `IpfsNode.read`."""
        data = self._files.get(cid)
        if data is None or offset + length > len(data):
            raise NodeError

        async def slices() -> AsyncIterator[bytes]:
            for start in range(offset, offset + length, SLICE):
                yield data[start : min(start + SLICE, offset + length)]

        yield slices()

    async def pin_status(self, cid: str) -> PinStatus | None:
        """See `IpfsNode.pin_status`."""
        return PinStatus(cid, self._pins[cid]) if cid in self._pins else None

    async def version(self) -> NodeVersion:
        """See `IpfsNode.version`."""
        return NodeVersion("memory", "0", tested=True)

    async def peer_id(self) -> str:
        """See `IpfsNode.peer_id`."""
        return "memory"

    async def peer_count(self) -> int:
        """See `IpfsNode.peer_count`."""
        return 0

    async def repo_stat(self) -> RepoStat:
        """See `IpfsNode.repo_stat`."""
        size = sum(len(data) for data in self._files.values())
        return RepoStat(size=size, storage_max=2**40)

    async def close(self) -> None:
        """See `IpfsNode.close`."""
