"""An IPFS node in memory with the same behaviour and CIDs, for tests that need no daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from on_api.core.errors import BlocksMissing, NodeError
from on_api.core.ipfs.formats.bundle import Bundle
from on_api.core.ipfs.formats.car import car_header, car_section
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.dag import Walk
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.port import Added, DagStat, Exchanged, NodePin, NodeVersion, RepoStat
from on_api.core.streams.blocks import Bytes

SLICE_BYTES = 64 * 1024


class MemoryNode:
    """A node that keeps files and blocks in memory; see `IpfsNode` for everything else."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._blocks: dict[Cid, bytes] = {}
        self._pins: dict[str, str] = {}

    async def add(self, source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        data = b"".join([chunk async for chunk in source])
        root = build_file(data)
        self._files[root.cid] = data
        self._blocks.update((Cid.from_text(node.cid), node.block) for node in root.walk())
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
            for start in range(offset, offset + length, SLICE_BYTES):
                yield data[start : min(start + SLICE_BYTES, offset + length)]

        yield slices()

    async def pin_status(self, cid: str) -> NodePin | None:
        """See `IpfsNode.pin_status`."""
        return NodePin(cid, self._pins[cid]) if cid in self._pins else None

    async def pins(self, *, name: str = "") -> AsyncIterator[NodePin]:
        """See `IpfsNode.pins`."""
        for cid, called in list(self._pins.items()):
            if name in called:
                yield NodePin(cid, called)

    async def pin(
        self,
        cid: str,
        *,
        name: str,
        fetch: bool,
        progress: Callable[[DagStat], None] | None = None,
    ) -> DagStat:
        """See `IpfsNode.pin`. There is no network: a missing block never arrives."""
        if fetch and Cid.from_text(cid) not in self._blocks:
            await asyncio.Event().wait()
        stat = await self.dag_stat(cid)
        if progress is not None:
            progress(stat)
        self._pins[cid] = name
        return stat

    async def pin_all(self, cids: Sequence[str], *, name: str) -> None:
        """See `IpfsNode.pin_all`."""
        for cid in cids:
            await self.pin(cid, name=name, fetch=False)

    async def unpin(self, cid: str) -> None:
        """See `IpfsNode.unpin`."""
        self._pins.pop(cid, None)

    async def dag_stat(self, cid: str, *, fetch: bool = False) -> DagStat:
        """See `IpfsNode.dag_stat`."""
        walk = self._walk(cid)
        while walk.wanted is not None:
            walk.take(walk.wanted, self._block(walk.wanted))
        return DagStat(walk.bytes, walk.blocks)

    async def dag_stats(self, cids: Sequence[str], *, seconds: float) -> Sequence[DagStat]:
        """See `IpfsNode.dag_stats`."""
        return [await self.dag_stat(cid) for cid in cids]

    @asynccontextmanager
    async def car(self, cid: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `IpfsNode.car`."""
        walk = self._walk(cid)

        async def pieces() -> AsyncIterator[bytes]:
            yield car_header(Cid.from_text(cid))
            while (wanted := walk.wanted) is not None:
                block = self._block(wanted)
                walk.take(wanted, block)
                yield car_section(wanted, block)

        yield pieces()

    async def block(self, cid: str) -> bytes | None:
        """See `IpfsNode.block`."""
        asked = Cid.from_text(cid)
        return self._blocks.get(asked) if asked.inline is None else asked.inline

    async def import_blocks(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> DagStat:
        """See `IpfsNode.import_blocks`."""
        stat = DagStat(0, 0)
        async for cid, block in blocks:
            self._blocks[cid] = block
            stat = DagStat(stat.size + len(block), stat.blocks + 1)
        return stat

    async def store_bundle(self, bundle: Bundle, *, pin_name: str) -> None:
        """See `IpfsNode.store_bundle`."""
        self._blocks.update(bundle.blocks)
        self._blocks[bundle.cid] = bundle.node
        self._files.update((str(cid), block) for cid, block in bundle.blocks)
        self._pins[str(bundle.cid)] = pin_name

    async def connect(self, address: str) -> None:
        """See `IpfsNode.connect`."""
        raise NodeError

    async def addresses(self) -> list[str]:
        """See `IpfsNode.addresses`."""
        return ["/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"]

    async def collect_garbage(self) -> int:
        """See `IpfsNode.collect_garbage`."""
        kept: set[Cid] = set()
        for cid in self._pins:
            walk = self._walk(cid)
            while walk.wanted is not None:
                kept.add(walk.wanted)
                walk.take(walk.wanted, self._block(walk.wanted))
        removed = len(self._blocks.keys() - kept)
        self._blocks = {cid: block for cid, block in self._blocks.items() if cid in kept}
        self._files = {cid: data for cid, data in self._files.items() if Cid.from_text(cid) in kept}
        return removed

    async def version(self) -> NodeVersion:
        """See `IpfsNode.version`."""
        return NodeVersion("memory", "0", tested=True)

    async def peer_id(self) -> str:
        """See `IpfsNode.peer_id`."""
        return "memory"

    async def peer_count(self) -> int:
        """See `IpfsNode.peer_count`."""
        return 0

    async def exchanged(self) -> Exchanged:
        """See `IpfsNode.exchanged`."""
        return Exchanged(sent=0, received=0)

    async def repo_stat(self) -> RepoStat:
        """See `IpfsNode.repo_stat`."""
        size = sum(len(data) for data in self._files.values())
        return RepoStat(size=size, storage_max=2**40)

    async def close(self) -> None:
        """See `IpfsNode.close`."""

    def _walk(self, cid: str) -> Walk:
        root = Cid.from_text(cid)
        if root.inline is None and root not in self._blocks:
            raise BlocksMissing
        return Walk(root)

    def _block(self, cid: Cid) -> bytes:
        if cid not in self._blocks:
            raise BlocksMissing
        return self._blocks[cid]
