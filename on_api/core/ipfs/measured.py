"""Decorator of any `IpfsNode` that counts, times and traces its calls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)

from on_api.core.errors import OnApiError
from on_api.core.ipfs.formats.bundle import Bundle
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.port import (
    Added,
    DagStat,
    Exchanged,
    IpfsNode,
    NodePin,
    NodeVersion,
    RepoStat,
)
from on_api.core.metrics import Metrics
from on_api.core.streams.blocks import Bytes
from on_api.core.tracing import Tracing


class MeasuredNode:
    """Passes every call on to `node`. The recorded outcome is `ok`, an error's reason, or `ended`
    if the call was cancelled or its caller failed. With `tracing` each call of a traced request is
    a span."""

    def __init__(self, node: IpfsNode, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._node = node
        self._metrics = metrics
        self._tracing = tracing

    async def add(self, source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        with self._measured("add"):
            return await self._node.add(source, pin_name=pin_name)

    def read(
        self, cid: str, *, offset: int, length: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `IpfsNode.read`."""
        return self._read(cid, offset, length)

    async def pin_status(self, cid: str) -> NodePin | None:
        """See `IpfsNode.pin_status`."""
        with self._measured("pin_status"):
            return await self._node.pin_status(cid)

    def pins(self, *, name: str = "") -> AsyncIterator[NodePin]:
        """See `IpfsNode.pins`."""
        return self._node.pins(name=name)

    async def pin(
        self,
        cid: str,
        *,
        name: str,
        fetch: bool,
        progress: Callable[[DagStat], None] | None = None,
    ) -> DagStat:
        """See `IpfsNode.pin`."""
        with self._measured("pin"):
            return await self._node.pin(cid, name=name, fetch=fetch, progress=progress)

    async def pin_all(self, cids: Sequence[str], *, name: str) -> None:
        """See `IpfsNode.pin_all`."""
        with self._measured("pin_all"):
            await self._node.pin_all(cids, name=name)

    async def unpin(self, cid: str) -> None:
        """See `IpfsNode.unpin`."""
        with self._measured("unpin"):
            await self._node.unpin(cid)

    async def dag_stat(self, cid: str, *, fetch: bool = False) -> DagStat:
        """See `IpfsNode.dag_stat`."""
        with self._measured("dag_stat"):
            return await self._node.dag_stat(cid, fetch=fetch)

    async def dag_stats(self, cids: Sequence[str], *, seconds: float) -> Sequence[DagStat]:
        """See `IpfsNode.dag_stats`."""
        with self._measured("dag_stats"):
            return await self._node.dag_stats(cids, seconds=seconds)

    def car(self, cid: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `IpfsNode.car`."""
        return self._node.car(cid)

    async def block(self, cid: str) -> bytes | None:
        """See `IpfsNode.block`."""
        with self._measured("block"):
            return await self._node.block(cid)

    async def import_blocks(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> DagStat:
        """See `IpfsNode.import_blocks`."""
        with self._measured("import_blocks"):
            return await self._node.import_blocks(blocks)

    async def store_bundle(self, bundle: Bundle, *, pin_name: str) -> None:
        """See `IpfsNode.store_bundle`."""
        with self._measured("store_bundle"):
            await self._node.store_bundle(bundle, pin_name=pin_name)

    async def connect(self, address: str) -> None:
        """See `IpfsNode.connect`."""
        with self._measured("connect"):
            await self._node.connect(address)

    async def addresses(self) -> list[str]:
        """See `IpfsNode.addresses`."""
        with self._measured("addresses"):
            return await self._node.addresses()

    async def collect_garbage(self) -> int:
        """See `IpfsNode.collect_garbage`."""
        with self._measured("collect_garbage"):
            return await self._node.collect_garbage()

    async def version(self) -> NodeVersion:
        """See `IpfsNode.version`."""
        with self._measured("version"):
            return await self._node.version()

    async def peer_id(self) -> str:
        """See `IpfsNode.peer_id`."""
        with self._measured("peer_id"):
            return await self._node.peer_id()

    async def peer_count(self) -> int:
        """See `IpfsNode.peer_count`."""
        with self._measured("peer_count"):
            return await self._node.peer_count()

    async def exchanged(self) -> Exchanged:
        """See `IpfsNode.exchanged`."""
        with self._measured("exchanged"):
            return await self._node.exchanged()

    async def repo_stat(self) -> RepoStat:
        """See `IpfsNode.repo_stat`."""
        with self._measured("repo_stat"):
            return await self._node.repo_stat()

    async def close(self) -> None:
        """See `IpfsNode.close`."""
        await self._node.close()

    @asynccontextmanager
    async def _read(
        self, cid: str, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        with self._measured("read"):
            async with self._node.read(cid, offset=offset, length=length) as chunks:
                yield chunks

    def _measured(self, call: str) -> AbstractContextManager[None]:
        return self._counted(call) if self._tracing is None else self._traced(call, self._tracing)

    @contextmanager
    def _traced(self, call: str, tracing: Tracing) -> Iterator[None]:
        with tracing.call(f"ipfs {call}", {"rpc.method": call}), self._counted(call):
            yield

    @contextmanager
    def _counted(self, call: str) -> Iterator[None]:
        started = time.perf_counter()
        outcome = "ok"
        try:
            yield
        except OnApiError as error:
            outcome = error.reason
            raise
        except BaseException:
            outcome = "ended"
            raise
        finally:
            self._metrics.node_calls.labels(call, outcome).inc()
            self._metrics.node_seconds.labels(call).observe(time.perf_counter() - started)
