"""Carries out pins: finds their blocks on the node or fetches them, pins, records.

What the node has itself goes first and fast. What must be fetched waits for one of a bounded number
of places, shared among users; a fetch that comes to a standstill makes room for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.orm import Session

from on_api.core.errors import (
    BlocksMissing,
    InsufficientFunds,
    InsufficientStorage,
    NodeError,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
    OnApiError,
)
from on_api.core.ipfs.client import DagStat, IpfsNode
from on_api.core.ipfs.multiaddr import Resolver, dialable
from on_api.core.metrics import Metrics
from on_api.core.models import Database
from on_api.core.models.database import utc_now
from on_api.core.services import contents, maintenance, pin_jobs
from on_api.core.services.bell import Bell
from on_api.core.services.capacity import Capacity
from on_api.core.services.keeper import Keeper
from on_api.core.services.pin_jobs import Claim
from on_api.core.services.pin_names import PinNames
from on_api.core.settings import Settings
from on_api.worker.unpinning import Unpinner

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCAL_PLACES = 32
"""Pins that are looked for on the node itself at once."""
BEAT_SECONDS = 1.0
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 600.0
"""Seconds until a fetch is tried again: the first, doubled at each next one, and the most."""
NODE_PAUSE = 2.0
LAST_ATTEMPT = 1.0
"""Seconds before a pin's deadline in which no further attempt is begun."""
REFUSALS_ALLOWED = 3
"""Attempts after which a pin is given up when the node refuses it without a way out."""


NO_PEERS = (
    "The IPFS node is private and has no peers, so nobody can provide this content. The operator "
    "can set ON_API_NODE__NETWORK=public to fetch from the IPFS network; or name a reachable node "
    "in `origins` (private addresses are dialled with ON_API_PINS__DIAL_PRIVATE=true only)."
)


class _Stop(Exception):
    """Ends an attempt; the pin goes back to the queue."""

    def __init__(self, details: str, *, pause: float, counted: bool = True) -> None:
        super().__init__(details)
        self.details, self.pause, self.counted = details, pause, counted


class _GiveUp(Exception):
    """Ends a pin as failed, for a reason that a person understands."""


@dataclass
class _Work:
    """A claim being worked on."""

    claim: Claim
    task: asyncio.Task[None] | None = None
    stat: DagStat | None = None
    moved_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    """When a block came last."""
    ended_by_us: bool = False
    """Not wanted any more, or making way: its cancellation is an answer, no accident."""
    is_over: bool = False
    """The attempt has ended; what is left is to write it down, and is not to be interrupted."""

    def see(self, stat: DagStat) -> None:
        if self.stat is None or stat.blocks > self.stat.blocks:
            self.moved_at = asyncio.get_running_loop().time()
        self.stat = stat


@dataclass
class _Lane:
    """Places for one kind of attempt. New claims are made when `least_free` of them are free."""

    places: int
    share: int
    """How many of them one user may have."""
    least_free: int
    work: dict[uuid.UUID, _Work] = field(default_factory=dict)
    claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_user: uuid.UUID | None = None
    is_full: bool = False


class PinWorker:
    """One process's share of the pins."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        node: IpfsNode,
        keeper: Keeper,
        names: PinNames,
        unpinner: Unpinner,
        capacity: Capacity,
        metrics: Metrics,
        resolver: Resolver,
        bell: Bell,
    ) -> None:
        self._settings = settings
        self._database = database
        self._node = node
        self._keeper = keeper
        self._names = names
        self._unpinner = unpinner
        self._capacity = capacity
        self._metrics = metrics
        self._resolver = resolver
        self._bell = bell
        self._life = timedelta(seconds=settings.worker.lease_seconds)
        concurrency = settings.pins.concurrency
        self._lanes = {
            # One user never takes every place, so that another one's pin finds one at once.
            True: _Lane(concurrency, max(1, concurrency - concurrency // 4), least_free=1),
            False: _Lane(LOCAL_PLACES, LOCAL_PLACES, least_free=LOCAL_PLACES // 2),
        }
        # Of its own: requests wait for the same database, not for the same threads.
        self._threads = CapacityLimiter(8)
        self._is_stopping = False

    async def step(self, *, fetch: bool) -> bool:
        """Begin what there is room for: fetches, or pins of what may lie on the node already.

        Returns whether anything was begun; the bell rings when there is room again.
        """
        lane = self._lanes[fetch]
        async with lane.claiming:
            free = lane.places - len(lane.work)
            lane.is_full = free < lane.least_free
            if self._is_stopping or lane.is_full:
                return False
            claims = await self._claim(lane, free, fetch=fetch)
            for claim in claims:
                work = lane.work[claim.id] = _Work(claim)
                work.task = asyncio.create_task(self._run(work, fetch=fetch))
                work.task.add_done_callback(partial(self._end, lane, claim.id))
        return bool(claims)

    async def beat(self) -> None:
        """Renew every lease, show progress, and end what is not wanted any more."""
        work = self._all_work()
        state = {key: (item.claim.token, item.stat) for key, item in work.items()}

        def renew(session: Session) -> tuple[set[uuid.UUID], bool]:
            lost = pin_jobs.renew(session, state, self._life) if state else set()
            return lost, maintenance.is_under_way(session, maintenance.GARBAGE)

        unwanted, make_way = await self._in_database(renew, write=bool(state))
        for key, item in work.items():
            if make_way or key in unwanted:
                self._interrupt(item)
        self._metrics.fetches.set(len(self._lanes[True].work))
        self._metrics.queue_length.set(await self._in_database(pin_jobs.queue_length, write=False))

    async def stop(self) -> None:
        """Claim nothing more, and give everything back that is being worked on."""
        self._is_stopping = True
        for lane in self._lanes.values():
            async with lane.claiming:  # what is being claimed at this moment must be given back too
                pass
        work = self._all_work().values()
        for item in work:
            self._interrupt(item)
        tasks = [item.task for item in work if item.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim(self, lane: _Lane, free: int, *, fetch: bool) -> Sequence[Claim]:
        """Claim pins of the next user in turn who has not more than their share under way."""
        busy = Counter(item.claim.user_id for item in lane.work.values())
        served = {user for user, count in busy.items() if count >= lane.share}

        def next_user(session: Session) -> uuid.UUID | None:
            return pin_jobs.next_user(session, lane.last_user, served, fetch=fetch) or (
                pin_jobs.next_user(session, None, served, fetch=fetch)
            )

        def claim(session: Session) -> Sequence[Claim]:
            if maintenance.is_under_way(session, maintenance.GARBAGE):
                return ()
            user = next_user(session)
            if user is None:
                return ()
            lane.last_user = user
            limit = min(free, lane.share - busy[user])
            return pin_jobs.claim(session, user, limit, self._life, fetch=fetch)

        # Asked by reading alone: on SQLite looking must not take the writer's place.
        if await self._in_database(next_user, write=False) is None:
            return ()
        return await self._in_database(claim)

    def _interrupt(self, work: _Work) -> None:
        if not work.is_over and work.task is not None:
            work.ended_by_us = work.is_over = True
            work.task.cancel()

    def _all_work(self) -> dict[uuid.UUID, _Work]:
        return {key: item for lane in self._lanes.values() for key, item in lane.work.items()}

    def _end(self, lane: _Lane, key: uuid.UUID, _task: asyncio.Task[None]) -> None:
        lane.work.pop(key, None)
        if lane.is_full and lane.places - len(lane.work) >= lane.least_free:
            lane.is_full = False
            self._bell.ring()

    async def _run(self, work: _Work, *, fetch: bool) -> None:
        """One attempt, whatever comes of it."""
        claim = work.claim
        try:
            try:
                await self._attempt(work, fetch=fetch)
            except asyncio.CancelledError:
                if not work.ended_by_us:
                    raise
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                details = "It was interrupted, and begins again soon."
                await self._put_back(claim, _Stop(details, pause=0, counted=False))
            except BlocksMissing:
                work.is_over = True
                await self._in_database(
                    lambda session: pin_jobs.put_back(
                        session, claim, needs_fetch=True, counted=False
                    )
                )
            except _Stop as stop:
                work.is_over = True
                await self._put_back(claim, stop)
            except _GiveUp as reason:
                work.is_over = True
                await self._fail(claim, str(reason))
        except OnApiError as error:
            # The database, most likely: the lease ends and another attempt begins.
            logger.warning("pin %s is left to its lease: %s", claim.id, error.details)
        except Exception:
            logger.exception("pin %s is left to its lease", claim.id)

    async def _attempt(self, work: _Work, *, fetch: bool) -> None:
        claim = work.claim
        if claim.removed:
            raise _GiveUp("It was removed.")
        try:
            stat = await self._pin(work, fetch=fetch)
            work.is_over = True
            await self._record(claim, stat)
        except InsufficientFunds:
            raise _GiveUp("The storage quota does not allow it.") from None
        except InsufficientStorage:
            raise self._again(claim, "The IPFS node has no room for it.", NODE_PAUSE * 10) from None
        except (NodeUnavailable, NodeTimeout) as error:
            raise self._again(claim, error.details, NODE_PAUSE) from None
        except BlocksMissing as error:
            if not fetch:
                raise
            raise self._again(claim, error.details, self._pause(claim)) from None
        except NodeTruncated as error:
            # It was restarted, most likely.
            raise self._again(claim, error.details, self._pause(claim)) from None
        except NodeError as error:
            # The same answer as last time is the node's last word.
            if claim.attempts >= REFUSALS_ALLOWED and claim.details == error.details:
                raise _GiveUp(
                    "The IPFS node can't pin this: its blocks are damaged, or of a kind that it "
                    "does not know."
                ) from error
            raise self._again(claim, error.details, NODE_PAUSE) from None

    async def _pin(self, work: _Work, *, fetch: bool) -> DagStat:
        """Have the node pin it, if it hasn't yet. Returns what the whole DAG is."""
        claim = work.claim
        name = await to_thread.run_sync(self._names.of, claim.id, limiter=self._threads)
        if claim.known is not None:
            # An earlier attempt may have ended between dropping the node's pin and renewing it.
            if claim.attempts > 1:
                await self._keeper.heal(claim.cid, claim.id)
            return DagStat(claim.known, 0)
        if await self._node.pin_status(claim.cid) is None:
            if not fetch:
                return await self._node.pin(claim.cid, name=name, fetch=False)
            await self._capacity.require(0)
            await self._meet(claim)
            return await self._fetch(
                work,
                self._node.pin(claim.cid, name=name, fetch=True, progress=work.see),
            )
        # Somebody pinned it beside us. What is missing of it is fetched without touching that pin.
        if not fetch:
            return await self._node.dag_stat(claim.cid)
        await self._meet(claim)
        return await self._fetch(work, self._node.dag_stat(claim.cid, fetch=True))

    async def _meet(self, claim: Claim) -> None:
        """Connect to whoever may have it. Raises `_GiveUp` when nobody can be asked at all."""
        allowed = await dialable(
            claim.origins, self._resolver, allow_private=self._settings.pins.dial_private
        )
        await asyncio.gather(
            *(self._node.connect(address) for address in allowed), return_exceptions=True
        )
        if self._settings.node.network == "private" and await self._node.peer_count() == 0:
            raise _GiveUp(NO_PEERS)

    async def _fetch(self, work: _Work, getting: Coroutine[None, None, DagStat]) -> DagStat:
        """Wait for the node while blocks come. Raises `_Stop` at a standstill, `_GiveUp` when the
        quota or the time is used up."""
        claim, patience = work.claim, self._settings.pins.patience
        loop = asyncio.get_running_loop()
        # Whoever waited long for a place still gets one honest attempt.
        grace = timedelta(seconds=min(patience, self._settings.pins.deadline))
        ends_at = max(claim.deadline_at, utc_now() + grace)
        work.moved_at = loop.time()
        task = asyncio.ensure_future(getting)
        try:
            while True:
                left = (ends_at - utc_now()).total_seconds()
                still = loop.time() - work.moved_at
                wait = min(patience - still, left, BEAT_SECONDS)
                done, _ = await asyncio.wait([task], timeout=max(wait, 0.01))
                if done:
                    return task.result()
                if work.stat and claim.room is not None and work.stat.size > claim.room:
                    raise InsufficientFunds
                if utc_now() >= ends_at or loop.time() - work.moved_at >= patience:
                    raise self._again(claim, _standstill(work.stat), self._pause(claim))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _again(self, claim: Claim, details: str, pause: float) -> _Stop | _GiveUp:
        """Another attempt later, or the end when its time is over."""
        left = (claim.deadline_at - utc_now()).total_seconds()
        if left < LAST_ATTEMPT:
            tried = _duration(self._settings.pins.deadline)
            return _GiveUp(f"{details} It was tried for {tried}.")
        return _Stop(details, pause=min(pause, left / 2))

    def _pause(self, claim: Claim) -> float:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(claim.attempts - 1, 10))
        # Jitter: those that came together don't come again together.
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)

    async def _record(self, claim: Claim, stat: DagStat) -> None:
        secured: dict[str, int] = {}
        while True:
            try:
                pinned = await self._in_database(
                    lambda session: pin_jobs.finish(session, claim, stat, secured)
                )
            except contents.NotSecuredError as error:
                secured[error.cid] = await self._keeper.secure(error.cid, claim.id)
            else:
                break
        if pinned:
            self._metrics.pins_ended.labels("pinned").inc()
        else:
            logger.info("pin %s was ended by somebody else", claim.id)
            await self._look_after(claim)

    async def _put_back(self, claim: Claim, stop: _Stop) -> None:
        await self._in_database(
            lambda session: pin_jobs.put_back(
                session,
                claim,
                due_in=timedelta(seconds=stop.pause),
                details=stop.details,
                counted=stop.counted,
            )
        )
        await self._look_after(claim)

    async def _fail(self, claim: Claim, reason: str) -> None:
        if await self._in_database(lambda session: pin_jobs.fail(session, claim, reason)):
            self._metrics.pins_ended.labels("failed").inc()
        await self._look_after(claim)

    async def _look_after(self, claim: Claim) -> None:
        """An attempt ended early may have left a pin for nobody, or dropped one of somebody's."""
        try:
            await self._keeper.heal(claim.cid, claim.id)
            left = await self._node.pin_status(claim.cid)
            # A pin of another name was there before us: it is for whoever made it to remove.
            if left is not None and self._names.job_of(left.name) is not None:
                await self._unpinner.unpin(claim.cid)
        except NodeError:
            logger.info("could not look after %s: fsck will", claim.cid)

    async def _in_database(self, work: Callable[[Session], T], *, write: bool = True) -> T:
        def run() -> T:
            with self._database.session_scope(write=write) as session:
                return work(session)

        return await to_thread.run_sync(run, limiter=self._threads)


def _standstill(stat: DagStat | None) -> str:
    if stat is None or stat.blocks == 0:
        return "Nobody who has this content could be found."
    return f"Only {stat.blocks} blocks ({stat.size} bytes) of this content could be found."


def _duration(seconds: int) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds} seconds"
