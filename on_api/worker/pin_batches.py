"""Batches of one user's pins whose blocks are on the node already: one walk, one call that pins,
one transaction that records. Like a bundle, but each content has a pin of its own.

Pins that can't go with the others, and all of them after any error, are left to be tried alone:
`pin_attempts.py` finds out what becomes of each.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from anyio import CancelScope
from sqlalchemy.orm import Session

from on_api.core.errors import (
    InsufficientFunds,
    InsufficientStorage,
    NodeError,
    NodeTimeout,
    OnApiError,
)
from on_api.core.ipfs.port import DagStat, IpfsNode
from on_api.core.metrics import Metrics
from on_api.core.services.content import leftovers
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.quota import Room
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.pins.jobs import PinClaim
from on_api.worker.interruptible import Interruptible
from on_api.worker.transactions import Transactions

logger = logging.getLogger(__name__)

MOST_PINS = 64
"""Pins of a batch at most."""
WALK_SECONDS = 2.0
"""Seconds for walking all DAGs of a batch: a slower walk would hold up the others."""
LONGEST = timedelta(minutes=1)
"""Time for the node to pin a batch. After a kill, what was listed for it waits that long."""


@dataclass(eq=False)
class PinBatch(Interruptible):
    """Claims of one user, all of different CIDs, that are worked on together."""

    claims: Sequence[PinClaim]
    kin: Sequence[PinClaim] = ()
    """Claims that the node is told to pin, all under the pin name of the first one; the others are
    listed as its leftovers meanwhile."""


class PinBatches:
    """Makes the node pin content whose blocks it has, and records the pins."""

    def __init__(
        self, transactions: Transactions, node: IpfsNode, names: PinNames, metrics: Metrics
    ) -> None:
        self._transactions = transactions
        self._node = node
        self._names = names
        self._metrics = metrics

    async def run(self, batch: PinBatch) -> set[uuid.UUID]:
        """Pin as many as can go together. Return the ids of those that are pinned; the others are
        unchanged, except that the node may have pinned some already."""
        pinned: set[uuid.UUID] = set()
        try:
            pinned = await self._run(batch)
        finally:
            with CancelScope(shield=True):
                await self._hasten(batch, pinned)
        return pinned

    async def _hasten(self, batch: PinBatch, pinned: Collection[uuid.UUID]) -> None:
        """Make the listed rest due now, instead of after `LONGEST`: the batch is over."""
        others = [claim.cid for claim in batch.kin[1:] if claim.id not in pinned]
        if not others:
            return
        first = batch.kin[0].id
        try:
            await self._transactions.run(lambda session: leftovers.leave(session, first, others))
        except OnApiError as error:
            logger.warning(
                "the pins left by batch %s will be removed later: %s", first, error.details
            )

    async def _run(self, batch: PinBatch) -> set[uuid.UUID]:
        try:
            stats = await self._pin(batch)
        except (NodeError, InsufficientStorage) as error:
            logger.info(
                "%d pins could not be made together and are made one by one: %s",
                len(batch.claims),
                error.details,
            )
            return set()
        batch.is_over = True
        together = [claim for claim in batch.claims if claim.id in stats]
        if not together:
            return set()

        def finish(session: Session) -> set[uuid.UUID]:
            pinned = pin_jobs.finish_all(session, together, stats)
            if batch.kin:
                named = [claim.cid for claim in batch.kin[1:] if claim.id in pinned]
                leftovers.forget(session, batch.kin[0].id, named)
            return pinned

        try:
            pinned = await self._transactions.run(finish)
        except InsufficientFunds:
            return set()
        self._metrics.pins_ended.labels("pinned").inc(len(pinned))
        return pinned

    async def _pin(self, batch: PinBatch) -> Mapping[uuid.UUID, DagStat]:
        """Have the node pin the batch; return the DAGs' sizes by pin."""
        # Content that on-api keeps needs no work, unless an earlier attempt has touched its pin.
        stats = {
            claim.id: DagStat(claim.known, 0)
            for claim in batch.claims
            if claim.known is not None and claim.is_first and not claim.removed
        }
        fresh = [claim for claim in batch.claims if claim.known is None and not claim.removed]
        if len(fresh) < 2:  # a single one is done as quickly alone
            return stats
        found = await asyncio.gather(*(self._node.pin_status(claim.cid) for claim in fresh))
        # Another program's pins are left alone: pinning would replace them and their names.
        fresh = [claim for claim, pin in zip(fresh, found, strict=True) if pin is None]
        walked = await self._walk(fresh)
        if fitting := dict(_within_room(fresh, walked)):
            going = [claim for claim in fresh if claim.id in fitting]
            first, others = going[0].id, [claim.cid for claim in going[1:]]
            name = await self._transactions.in_thread(self._names.of, first)
            # Listed before the node pins them: they get the first claim's name, whose row may be
            # gone before they are settled, and a kill may come at any moment.
            await self._transactions.run(
                lambda session: leftovers.leave(session, first, others, due_in=LONGEST)
            )
            batch.kin = going
            await self._node.pin_all([claim.cid for claim in going], name=name)
        return {**stats, **fitting}

    async def _walk(self, claims: Sequence[PinClaim]) -> Mapping[uuid.UUID, DagStat]:
        """Return the sizes of the DAGs whose blocks are all there, by pin."""
        if not claims:
            return {}
        try:
            cids = [claim.cid for claim in claims]
            found = await self._node.dag_stats(cids, seconds=WALK_SECONDS)
            return dict(zip((claim.id for claim in claims), found, strict=True))
        except NodeTimeout:
            raise
        except NodeError:
            # One of them failed, and it is unknown which: the others are asked one by one.
            each = await asyncio.gather(
                *(self._node.dag_stat(claim.cid) for claim in claims), return_exceptions=True
            )
        whole: dict[uuid.UUID, DagStat] = {}
        for claim, stat in zip(claims, each, strict=True):
            if isinstance(stat, DagStat):
                whole[claim.id] = stat
            elif not isinstance(stat, NodeError):
                raise stat
        return whole


def _within_room(
    claims: Sequence[PinClaim], stats: Mapping[uuid.UUID, DagStat]
) -> Iterator[tuple[uuid.UUID, DagStat]]:
    """Yield as many as the user's quota has room for, as far as is known before they are
    recorded."""
    room = Room(claims[0].room if claims else None)
    for claim in claims:
        stat = stats.get(claim.id)
        if stat is not None and room.take(stat.size):
            yield claim.id, stat
