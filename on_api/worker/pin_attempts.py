"""One attempt at one pin: finds its blocks on the node or fetches them, pins, records.

`pinning.py` decides which pins are tried, and when.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

from on_api.core.backoff import Backoff
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
from on_api.core.ipfs.formats.multiaddr import Resolver, dialable
from on_api.core.ipfs.port import DagStat, IpfsNode
from on_api.core.metrics import Metrics
from on_api.core.services.content import contents
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.pins.jobs import PinClaim
from on_api.core.settings import Settings
from on_api.worker.interruptible import Interruptible
from on_api.worker.leftovers import LeftoverRemover
from on_api.worker.transactions import Transactions

logger = logging.getLogger(__name__)

LOCAL_PINS_AT_ONCE = 32
"""Pins that are looked for on the node one by one, at the same time."""
LOOK_SECONDS = 1.0
"""Seconds between two checks of a fetch."""
FETCHES = Backoff(first=5.0, longest=600.0)
NODE_PAUSE_SECONDS = 2.0
LAST_ATTEMPT_SECONDS = 1.0
"""Seconds before a pin's deadline in which no further attempt is begun."""
REFUSALS_ALLOWED = 3
"""Attempts after which a pin fails if the node repeats its last error."""


NO_PEERS = (
    "The IPFS node is private and has no peers, so it can't fetch this content. The operator"
    " can set ON_API_NODE__NETWORK=public to fetch from the IPFS network; alternatively, name"
    " a reachable node in `origins` (private addresses require"
    " ON_API_PINS__DIAL_PRIVATE=true)."
)


class _Stop(Exception):
    """Ends an attempt; the pin goes back to the queue."""

    def __init__(self, details: str, *, pause: float, counted: bool = True) -> None:
        super().__init__(details)
        self.details, self.pause, self.counted = details, pause, counted


class _GiveUp(Exception):
    """Ends a pin as failed, for a reason that is shown to the user."""


@dataclass(eq=False)
class Work(Interruptible):
    """A claim being worked on; it has no task of its own while it is in a batch."""

    claim: PinClaim
    stat: DagStat | None = None
    moved_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    """Time of the last block, on the event loop's clock."""

    def see(self, stat: DagStat) -> None:
        """Record how much has come."""
        if self.stat is None or stat.blocks > self.stat.blocks:
            self.moved_at = asyncio.get_running_loop().time()
        self.stat = stat


class PinAttempts:
    """Tries pins one by one."""

    def __init__(
        self,
        settings: Settings,
        transactions: Transactions,
        node: IpfsNode,
        reconciler: PinReconciler,
        leftovers: LeftoverRemover,
        names: PinNames,
        capacity: Capacity,
        metrics: Metrics,
        resolver: Resolver,
    ) -> None:
        self._settings = settings
        self._transactions = transactions
        self._node = node
        self._reconciler = reconciler
        self._leftovers = leftovers
        self._names = names
        self._capacity = capacity
        self._metrics = metrics
        self._resolver = resolver
        self._local_slots = asyncio.Semaphore(LOCAL_PINS_AT_ONCE)

    async def run(self, work: Work, *, fetch: bool) -> None:
        """Make one attempt, and record its outcome."""
        claim = work.claim
        try:
            try:
                async with nullcontext() if fetch else self._local_slots:
                    await self._attempt(work, fetch=fetch)
            except asyncio.CancelledError:
                if not work.ended_by_us:
                    raise
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                await self.give_back(claim)
            except BlocksMissing:
                work.is_over = True
                await self._transactions.run(
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
            # The database, most likely: the lease expires and another attempt begins.
            logger.warning(
                "pin %s will be retried when its lease expires: %s", claim.id, error.details
            )
        except Exception:
            logger.exception("pin %s will be retried when its lease expires", claim.id)

    async def give_back(self, claim: PinClaim) -> None:
        """Put an interrupted pin back, as if it had not been tried."""
        details = "The attempt was interrupted; it will be repeated soon."
        await self._put_back(claim, _Stop(details, pause=0, counted=False))

    async def _attempt(self, work: Work, *, fetch: bool) -> None:
        claim = work.claim
        if claim.removed:
            raise _GiveUp("The pin was removed.")
        try:
            stat = await self._pin(work, fetch=fetch)
            work.is_over = True
            await self._record(claim, stat)
        except InsufficientFunds:
            raise _GiveUp("The storage quota does not allow this pin.") from None
        except InsufficientStorage:
            raise self._again(
                claim, "The IPFS node has no space left for this content.", NODE_PAUSE_SECONDS * 10
            ) from None
        except (NodeUnavailable, NodeTimeout) as error:
            raise self._again(claim, error.details, NODE_PAUSE_SECONDS) from None
        except BlocksMissing as error:
            if not fetch:
                raise
            raise self._again(claim, error.details, FETCHES.jittered(claim.attempts)) from None
        except NodeTruncated as error:
            # The node was restarted, most likely.
            raise self._again(claim, error.details, FETCHES.jittered(claim.attempts)) from None
        except NodeError as error:
            # The same error as last time: the node's final answer.
            if claim.attempts >= REFUSALS_ALLOWED and claim.details == error.details:
                raise _GiveUp(
                    "The IPFS node can't pin this content: its blocks are damaged or have an"
                    " unknown format."
                ) from error
            raise self._again(claim, error.details, NODE_PAUSE_SECONDS) from None

    async def _pin(self, work: Work, *, fetch: bool) -> DagStat:
        """Have the node pin the content if it hasn't yet. Return the size of the whole DAG."""
        claim = work.claim
        name = await self._transactions.in_thread(self._names.of, claim.id)
        if claim.known is not None:
            # An earlier attempt may have ended between dropping the node's pin and renewing it.
            if not claim.is_first:
                await self._reconciler.heal(claim.cid, claim.id)
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
        # Another program has pinned it. Missing blocks are fetched without touching that pin.
        if not fetch:
            return await self._node.dag_stat(claim.cid)
        await self._meet(claim)
        return await self._fetch(work, self._node.dag_stat(claim.cid, fetch=True))

    async def _meet(self, claim: PinClaim) -> None:
        """Connect to the pin's origins. Raises `_GiveUp` if the node has no peer at all."""
        allowed = await dialable(
            claim.origins, self._resolver, allow_private=self._settings.pins.dial_private
        )
        await asyncio.gather(
            *(self._node.connect(address) for address in allowed), return_exceptions=True
        )
        if self._settings.node.network == "private" and await self._node.peer_count() == 0:
            raise _GiveUp(NO_PEERS)

    async def _fetch(self, work: Work, getting: Coroutine[None, None, DagStat]) -> DagStat:
        """Wait for the node while blocks come. Raises `_Stop` at a standstill, `_GiveUp` when the
        time is up, `InsufficientFunds` over the quota."""
        claim, patience = work.claim, self._settings.pins.patience
        loop = asyncio.get_running_loop()
        # A claim that waited long for its turn still gets one full attempt.
        work.moved_at = loop.time()
        ends_at = max(claim.ends_at, time.monotonic() + min(patience, self._settings.pins.deadline))
        task = asyncio.ensure_future(getting)
        try:
            while True:
                left = ends_at - time.monotonic()
                still = loop.time() - work.moved_at
                wait = min(patience - still, left, LOOK_SECONDS)
                done, _ = await asyncio.wait([task], timeout=max(wait, 0.01))
                if done:
                    return task.result()
                if work.stat and claim.room is not None and work.stat.size > claim.room:
                    raise InsufficientFunds
                if time.monotonic() >= ends_at or loop.time() - work.moved_at >= patience:
                    raise self._again(
                        claim, _standstill(work.stat), FETCHES.jittered(claim.attempts)
                    )
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _again(self, claim: PinClaim, details: str, pause: float) -> _Stop | _GiveUp:
        """Return the exception for another attempt later, or for the end when the time is up."""
        left = claim.ends_at - time.monotonic()
        if left < LAST_ATTEMPT_SECONDS:
            tried = _duration(self._settings.pins.deadline)
            return _GiveUp(f"{details} The time limit of {tried} was exceeded.")
        return _Stop(details, pause=min(pause, left / 2))

    async def _record(self, claim: PinClaim, stat: DagStat) -> None:
        secured: dict[str, int] = {}
        while True:
            try:
                pinned = await self._transactions.run(
                    lambda session: pin_jobs.finish(session, claim, stat, secured)
                )
            except contents.NotSecuredError as error:
                secured[error.cid] = await self._reconciler.secure(error.cid, claim.id)
            else:
                break
        if pinned:
            self._metrics.pins_ended.labels("pinned").inc()
        else:
            logger.info("pin %s was ended by another process", claim.id)
            await self._look_after(claim)

    async def _put_back(self, claim: PinClaim, stop: _Stop) -> None:
        await self._transactions.run(
            lambda session: pin_jobs.put_back(
                session,
                claim,
                due_in=timedelta(seconds=stop.pause),
                details=stop.details,
                counted=stop.counted,
            )
        )
        await self._look_after(claim)

    async def _fail(self, claim: PinClaim, reason: str) -> None:
        if await self._transactions.run(lambda session: pin_jobs.fail(session, claim, reason)):
            self._metrics.pins_ended.labels("failed").inc()
        await self._look_after(claim)

    async def _look_after(self, claim: PinClaim) -> None:
        """Repair the node's pins: an attempt that ended early may have left one that no row keeps,
        or dropped one that another row keeps."""
        try:
            await self._reconciler.heal(claim.cid, claim.id)
            await self._leftovers.remove_of(claim.id)
        except NodeError:
            logger.info("could not check the pin of %s", claim.cid)


def _standstill(stat: DagStat | None) -> str:
    if stat is None or stat.blocks == 0:
        return "No provider of this content could be found."
    return f"Only {stat.blocks} blocks ({stat.size} bytes) of this content could be found."


def _duration(seconds: int) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds} seconds"
