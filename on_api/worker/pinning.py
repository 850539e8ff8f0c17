"""Pins as jobs: claims them, works on as many as there are slots for, renews their leases.

Content that the node has already goes first and fast, many pins at a time. Content that must be
fetched waits for one of a bounded number of slots, shared among users; a fetch that comes to a
standstill gives its slot to the next one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.orm import Session

from on_api.core.errors import OnApiError
from on_api.core.ipfs.formats.multiaddr import Resolver
from on_api.core.ipfs.port import IpfsNode
from on_api.core.metrics import Metrics
from on_api.core.models import Database
from on_api.core.services.content import maintenance
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.pins.jobs import PinClaim
from on_api.core.services.shared.wakeup import Sleeper
from on_api.core.settings import Settings
from on_api.worker.leftovers import LeftoverRemover
from on_api.worker.pin_attempts import PinAttempts, Work
from on_api.worker.pin_batches import MOST_PINS, PinBatch, PinBatches
from on_api.worker.transactions import Transactions

logger = logging.getLogger(__name__)

BATCHES = 4
"""Batches of pins that may be on the node already, at once: one is claimed or recorded while the
node works on another."""
BEAT_SECONDS = 1.0


@dataclass
class _Lane:
    """Slots for one kind of attempt. New claims are made when `at_once` of them are free."""

    slots: int
    share: int
    """Slots that one user may have: never all, so that another user's pin finds one at once."""
    at_once: int
    work: dict[uuid.UUID, Work] = field(default_factory=dict)
    batches: set[PinBatch] = field(default_factory=set)
    claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_user: uuid.UUID | None = None

    @property
    def has_free_slots(self) -> bool:
        """True if another claim can be made."""
        return self.slots - len(self.work) >= self.at_once

    def end(self, works: Iterable[Work]) -> None:
        """Free the slots of these."""
        for work in works:
            if (
                self.work.get(work.claim.id) is work
            ):  # else its lease was lost, and taken here again
                del self.work[work.claim.id]


class PinWorker:
    """Worker for pins, one in each process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        node: IpfsNode,
        reconciler: PinReconciler,
        leftovers: LeftoverRemover,
        names: PinNames,
        capacity: Capacity,
        metrics: Metrics,
        resolver: Resolver,
    ) -> None:
        self._metrics = metrics
        self._life = timedelta(seconds=settings.worker.lease_seconds)
        self._transactions = Transactions(database, threads=8)
        self._batches = PinBatches(self._transactions, node, names, metrics)
        self._attempts = PinAttempts(
            settings,
            self._transactions,
            node,
            reconciler,
            leftovers,
            names,
            capacity,
            metrics,
            resolver,
        )
        fetches = settings.pins.concurrency
        self._lanes = {
            True: _Lane(fetches, max(1, fetches - fetches // 4), 1),
            # Several are worth a claim: one of another user's may have come alone just before.
            False: _Lane(BATCHES * MOST_PINS, (BATCHES - 1) * MOST_PINS, MOST_PINS // 4),
        }
        self._sleepers: list[Sleeper] = []
        self._is_stopping = False

    def wake_at_an_end(self, sleeper: Sleeper) -> None:
        """Wake `sleeper` whenever an attempt has ended: then a slot is free, and another pin of the
        same content can be claimed, or the same one for a fetch."""
        self._sleepers.append(sleeper)

    async def next_due(self, *, fetch: bool) -> float | None:
        """Return the seconds until the next pin is due; None if none waits, or no slot is free."""
        if not self._lanes[fetch].has_free_slots:
            return None
        return await self._transactions.run(
            lambda session: pin_jobs.next_due(session, fetch=fetch), write=False
        )

    async def step(self, *, fetch: bool) -> bool:
        """Begin as many attempts as there are slots: fetches, or pins whose blocks may be on the
        node already. Return whether any was begun."""
        lane = self._lanes[fetch]
        async with lane.claiming:
            if self._is_stopping or not lane.has_free_slots:
                return False
            claims = await self._claim(lane, fetch=fetch)
            works = [Work(claim) for claim in claims]
            lane.work.update((work.claim.id, work) for work in works)
            if fetch or len(works) == 1:
                for work in works:
                    self._go_alone(lane, work, fetch=fetch)
            elif works:
                batch = PinBatch(claims)
                batch.task = asyncio.create_task(self._go_together(lane, batch, works))
                lane.batches.add(batch)
        return bool(claims)

    async def beat(self) -> None:
        """Renew every lease, record progress, and end work that is not wanted any more. Without
        work, the database is not asked."""
        work = self._all_work()
        self._metrics.fetches.set(len(self._lanes[True].work))
        if work:
            await self._renew(work)

    async def _renew(self, work: Mapping[uuid.UUID, Work]) -> None:
        state = {key: (item.claim.token, item.stat) for key, item in work.items()}

        def renew(session: Session) -> tuple[set[uuid.UUID], bool]:
            lost = pin_jobs.renew(session, state, self._life)
            return lost, maintenance.is_under_way(session, maintenance.GARBAGE)

        unwanted, make_way = await self._transactions.run(renew)
        # Batches go on: they are done sooner than they would be interrupted.
        for key, item in work.items():
            if make_way or key in unwanted:
                item.interrupt()

    async def stop(self) -> None:
        """Claim nothing more, and give back all work under way."""
        self._is_stopping = True
        for lane in self._lanes.values():
            async with lane.claiming:  # waits for claims being made: they must be given back too
                pass
        batches = [batch for lane in self._lanes.values() for batch in lane.batches]
        for batch in batches:
            batch.interrupt()
        # Pins that could not be recorded together are tried alone.
        await asyncio.gather(*(b.task for b in batches if b.task), return_exceptions=True)
        work = self._all_work().values()
        for item in work:
            item.interrupt()
        tasks = [item.task for item in work if item.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim(self, lane: _Lane, *, fetch: bool) -> Sequence[PinClaim]:
        """Claim pins of the next user in turn who has not used up their share of slots."""
        busy = Counter(item.claim.user_id for item in lane.work.values())
        served = {user for user, count in busy.items() if count + lane.at_once > lane.share}
        free = lane.slots - len(lane.work)

        def next_user(session: Session) -> uuid.UUID | None:
            return pin_jobs.next_user(session, lane.last_user, served, fetch=fetch) or (
                pin_jobs.next_user(session, None, served, fetch=fetch)
            )

        def claim(session: Session) -> Sequence[PinClaim]:
            if not maintenance.may_begin(session):
                return ()
            user = next_user(session)
            if user is None:
                return ()
            lane.last_user = user
            limit = min(free, lane.share - busy[user], MOST_PINS)
            return pin_jobs.claim(session, user, limit, self._life, fetch=fetch)

        # Read first: on SQLite a look must not take the only writer's turn.
        if await self._transactions.run(next_user, write=False) is None:
            return ()
        return await self._transactions.run(claim)

    async def _go_together(self, lane: _Lane, batch: PinBatch, works: Sequence[Work]) -> None:
        """Make one attempt at several pins; those that are not pinned then are tried alone."""
        alone: Sequence[Work] = ()
        try:
            pinned = await self._batches.run(batch)
            alone = [work for work in works if work.claim.id not in pinned]
        except asyncio.CancelledError:
            if not batch.ended_by_us:
                raise
            await self._give_back(batch.claims)
        except OnApiError as error:
            # The database, most likely: the leases expire and other attempts begin.
            logger.warning(
                "%d pins will be retried when their leases expire: %s", len(works), error.details
            )
        except Exception:
            logger.exception("%d pins will be retried when their leases expire", len(works))
        finally:
            lane.batches.discard(batch)
            self._end(lane, (work for work in works if work not in alone))
        for work in alone:
            self._go_alone(lane, work, fetch=False)

    async def _give_back(self, claims: Sequence[PinClaim]) -> None:
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        await asyncio.gather(*map(self._attempts.give_back, claims), return_exceptions=True)

    def _go_alone(self, lane: _Lane, work: Work, *, fetch: bool) -> None:
        work.task = asyncio.create_task(self._attempts.run(work, fetch=fetch))
        work.task.add_done_callback(lambda _: self._end(lane, (work,)))

    def _end(self, lane: _Lane, works: Iterable[Work]) -> None:
        lane.end(works)
        for sleeper in self._sleepers:
            sleeper.wake()

    def _all_work(self) -> dict[uuid.UUID, Work]:
        return {key: item for lane in self._lanes.values() for key, item in lane.work.items()}
