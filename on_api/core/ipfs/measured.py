"""Any `IpfsNode`, with its calls counted and timed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from on_api.core.errors import OnApiError
from on_api.core.ipfs.client import Added, IpfsNode, NodeVersion, PinStatus, RepoStat
from on_api.core.metrics import Metrics


class MeasuredNode:
    """Passes every call on to `node`. The outcome is `ok`, an error's reason, or `ended` by
    somebody else."""

    def __init__(self, node: IpfsNode, metrics: Metrics) -> None:
        self._node = node
        self._metrics = metrics

    async def add(self, source: AsyncIterator[bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        with self._measured("add"):
            return await self._node.add(source, pin_name=pin_name)

    def read(
        self, cid: str, *, offset: int, length: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `IpfsNode.read`."""
        return self._read(cid, offset, length)

    async def pin_status(self, cid: str) -> PinStatus | None:
        """See `IpfsNode.pin_status`."""
        with self._measured("pin_status"):
            return await self._node.pin_status(cid)

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

    @contextmanager
    def _measured(self, call: str) -> Iterator[None]:
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
