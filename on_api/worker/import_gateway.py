"""Fetches an item of an import from a gateway, under an upload's lease that reserves as bytes come.

After a crash its lease is dead, and the blocks that came are found when the item is begun anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread

from on_api.core.errors import BlocksMissing, OnApiError, PayloadTooLarge
from on_api.core.ipfs.formats.cid import Cid, raw_leaf_cid
from on_api.core.ipfs.port import DagStat
from on_api.core.ipfs.retrieval import GatewayFetcher
from on_api.core.net.errors import SourceError
from on_api.core.services.container import Services
from on_api.core.services.content.leases import UPLOAD, JobHolder, LeaseHandle
from on_api.core.services.content.reservations import Announced
from on_api.core.services.transfer.jobs import Item

logger = logging.getLogger(__name__)

T = TypeVar("T")

EMPTY = raw_leaf_cid(hashlib.sha256().digest())
"""CID of the empty file. Kubo's bitswap never passes its block on (seen with 0.43.0), so on-api
makes it itself."""
COVER_SECONDS = 0.25
"""Seconds between two reservations for what has come from a gateway."""


class GiveUpError(Exception):
    """Ends an item as failed, for a reason that is shown to the user."""


class GatewayFetch:
    """Fetches items of one user's import from one gateway, if there is one. `seen`: what has come
    so far, by item."""

    def __init__(
        self,
        services: Services,
        user_id: uuid.UUID,
        gateway: GatewayFetcher | None,
        threads: CapacityLimiter,
    ) -> None:
        self._services = services
        self._user_id = user_id
        self._gateway = gateway
        self._threads = threads
        self.seen: dict[uuid.UUID, DagStat] = {}

    @property
    def has_gateway(self) -> bool:
        """True if there is a gateway."""
        return self._gateway is not None

    @asynccontextmanager
    async def brought(self, item: Item, ends_at: float) -> AsyncIterator[LeaseHandle]:
        """Put all of an item's blocks on the node before `ends_at` (on the clock of
        `time.monotonic`), pinned under a lease that the `async with` block must close.

        Raises `GiveUpError`, a `NodeError`, or an error of the reservation.
        """
        services = self._services
        await services.capacity.require(item.size or 0)
        holder, announced = JobHolder(self._user_id), Announced(item.size or 0)
        lease = await self._in_thread(lambda: services.leases.open(UPLOAD, holder, announced))
        try:
            async with services.leases.kept_alive(lease):
                await self._bring(item, lease, ends_at)
                yield lease
        except BaseException:
            with CancelScope(shield=True):
                await self._abandon(lease)
            raise
        finally:
            self.seen.pop(item.id, None)

    async def _bring(self, item: Item, lease: LeaseHandle, ends_at: float) -> None:
        """Pin an item under the lease; its missing blocks are fetched first."""
        node = self._services.node
        if await node.pin_status(item.cid) is None:
            try:
                # The blocks of an earlier attempt are still there.
                await self._pin(item, lease)
            except BlocksMissing:
                await self._fetch(item, lease, ends_at)
                await self._pin(item, lease)

    async def _pin(self, item: Item, lease: LeaseHandle) -> None:
        # Listed first: it may be pinned although the answer is lost.
        lease.pinned[item.cid] = self.seen.get(item.id, DagStat(item.size or 0, 0)).size
        stat = await self._services.node.pin(item.cid, name=lease.pin_name, fetch=False)
        lease.pinned[item.cid] = stat.size

    async def _fetch(self, item: Item, lease: LeaseHandle, ends_at: float) -> None:
        """Fetch the missing blocks, and reserve for them as they come. Raises `GiveUpError`."""
        if item.cid == EMPTY:
            await self._services.node.import_blocks(_only_the_empty_block())
            return
        if self._gateway is None:
            raise GiveUpError("No gateway is configured from which the content could be fetched.")

        def look(stat: DagStat) -> None:
            self.seen[item.id] = stat

        most = self._services.settings.files.max_size
        fetching = asyncio.ensure_future(
            self._gateway.fetch(item.cid, max_bytes=most, progress=look)
        )
        try:
            while not (await asyncio.wait([fetching], timeout=COVER_SECONDS))[0]:
                size = self.seen.get(item.id, DagStat(0, 0)).size
                if lease.covered is not None and size > lease.covered:
                    await self._cover(lease, size)
                await self._services.capacity.require(0)
                if time.monotonic() >= ends_at:
                    raise GiveUpError(
                        "The time limit was exceeded: the content is too large, or the gateway is"
                        " too slow."
                    )
            fetching.result()
        except (SourceError, PayloadTooLarge) as error:
            raise GiveUpError(error.details) from error
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    async def _cover(self, lease: LeaseHandle, size: int) -> None:
        await self._in_thread(lambda: self._services.leases.cover(lease, size))

    async def _abandon(self, lease: LeaseHandle) -> None:
        """Give back the lease of a failed attempt; if that fails, its leftovers are found by the
        dead lease."""
        try:
            await self._in_thread(lambda: self._services.leases.abandon(lease))
        except OnApiError as error:
            logger.warning("could not release lease %s: %s", lease.id, error.details)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)


async def _only_the_empty_block() -> AsyncIterator[tuple[Cid, bytes]]:
    yield Cid.from_text(EMPTY), b""
