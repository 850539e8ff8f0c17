"""Garbage collection: its preconditions and its result.

Kubo's collection waits for every upload and fetch under way, and everything new waits behind it; so
these are ended or held back first. Blocks of an upload that are stored on the node but not recorded
yet must not be collected: it starts only when no upload is left, else it is postponed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from anyio import to_thread
from sqlalchemy import exists, select

from on_api.core.errors import OnApiError
from on_api.core.ipfs.port import IpfsNode
from on_api.core.metrics import Metrics
from on_api.core.models import Content, Database, Lease, Pin
from on_api.core.models.content import UNPINNING
from on_api.core.models.database import database_now, moment_of
from on_api.core.services.content import maintenance
from on_api.core.services.content.maintenance import GARBAGE, Turn
from on_api.core.services.content.private_blocks import forget_collected
from on_api.core.services.pins.jobs import UNDER_WAY
from on_api.core.services.upkeep.fsck.runner import Fsck

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
RETRY = timedelta(minutes=10)
"""Time until the next try after a collection that was postponed or failed."""
COLLECTED = "collected"


@dataclass(frozen=True, slots=True)
class Collection:
    """Result of a collection. `outcome`: `collected`, `postponed` (uploads did not end, or the turn
    was lost), `unsafe` (content with holdings has no pin, and none can be made) or `failed`."""

    outcome: str
    removed_blocks: int = 0
    freed_bytes: int = 0
    seconds: float = 0.0


class GarbageCollector:
    """Collector that runs collections, one at a time over all processes."""

    def __init__(self, database: Database, node: IpfsNode, fsck: Fsck, metrics: Metrics) -> None:
        self._database = database
        self._node = node
        self._fsck = fsck
        self._metrics = metrics
        self._not_before = float("-inf")
        """Earliest time of the next try after a collection that could not begin, which is not
        recorded."""

    async def collect(self, patience: float) -> Collection:
        """Free the blocks that no pin covers. Waits up to `patience` seconds for uploads to end.

        Raises `Conflict` while another collection runs, a `NodeError` when the node can't be asked:
        then none has begun.
        """
        await self._node.peer_id()
        turn = await to_thread.run_sync(Turn, self._database, GARBAGE)
        started = time.monotonic()
        done = Collection("failed")
        try:
            async with turn.kept():
                if not await self._is_quiet_within(patience):
                    done = Collection("postponed")
                elif not await self._is_all_pinned():
                    done = Collection("unsafe")
                else:
                    before = await self._node.repo_stat()
                    if not await to_thread.run_sync(turn.renew):
                        # Suspended for so long that other work may have begun.
                        done = Collection("postponed")
                    else:
                        removed = await self._node.collect_garbage()
                        await to_thread.run_sync(self._forget_collected)
                        after = await self._node.repo_stat()
                        freed = max(0, before.size - after.size)
                        seconds = round(time.monotonic() - started, 3)
                        done = Collection(COLLECTED, removed, freed, seconds)
        finally:
            self._metrics.collections.labels(done.outcome).inc()
            self._metrics.freed_bytes.inc(done.freed_bytes)
            self._metrics.collection_seconds.observe(time.monotonic() - started)
            await to_thread.run_sync(turn.end, asdict(done))
            logger.info(
                "garbage collection %s: %d blocks, %d bytes",
                done.outcome,
                done.removed_blocks,
                done.freed_bytes,
            )
        return done

    async def collect_when_due(self, interval: timedelta, patience: float) -> bool:
        """Collect if the last collection ended `interval` ago or more. Returns whether one was
        tried."""
        if time.monotonic() < self._not_before:
            return False
        if not await to_thread.run_sync(self.is_due, interval):
            return False
        try:
            await self.collect(patience)
        except OnApiError as error:
            self._not_before = time.monotonic() + RETRY.total_seconds()
            logger.warning("garbage collection failed: %s", error.details)
        return True

    async def _is_all_pinned(self) -> bool:
        """Return whether no kept content would be collected: pins that the node has lost are made
        again."""
        report = await self._fsck.restore_pins()
        for finding in report.findings:
            level = logging.ERROR if finding.is_trouble else logging.WARNING
            logger.log(
                level,
                "%s has lost its pin%s",
                finding.subject,
                "" if finding.is_trouble else "; pinned again",
            )
        return report.clean

    async def _is_quiet_within(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while await to_thread.run_sync(self.is_busy):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    def _forget_collected(self) -> None:
        with self._database.session_scope() as session:
            forget_collected(session)

    def is_busy(self) -> bool:
        """Return whether an upload, a fetch or a removal is under way in any process."""
        now = database_now()
        with self._database.session_scope(write=False) as session:
            uploads = exists().where(Lease.lease_until > now)
            fetches = exists().where(Pin.status.in_(UNDER_WAY), Pin.lease_until > now)
            removals = exists().where(
                Content.state == UNPINNING,
                Content.lease_until > now,
            )
            return bool(session.scalar(select(uploads | fetches | removals)))

    def is_due(self, interval: timedelta) -> bool:
        """Return whether the last collection ended `interval` ago or more, or `RETRY` ago if it did
        not succeed. Starts the schedule where none has run."""
        with self._database.session_scope(write=False) as session:
            last, now = maintenance.last_outcome(session, GARBAGE), moment_of(session)
        if last.finished_at is None:
            with self._database.session_scope() as session:
                maintenance.start_counting(session, GARBAGE)
            return False
        if last.result is not None and last.result["outcome"] != COLLECTED:
            interval = min(interval, RETRY)
        return now - last.finished_at >= interval
