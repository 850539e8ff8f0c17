"""Removes what failed uploads and jobs have left pinned on the node, soon after their leases are
dead, and releases what these reserved.

A lease lists what is known to be pinned under it. A pin left by a kill between the node's pin and
on-api's commit is found by its name: the node's pins are listed once for all dead leases. Nothing
is removed because a row is missing, and nothing by the name of a lease whose death was not noticed
in time, as is the case for all leases in a restored database. What is listed may have been stored
again there, by work that no row tells of: then it stays.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from anyio import to_thread
from sqlalchemy.orm import Session

from on_api.core.errors import BadRequest, Conflict, NodeError
from on_api.core.ipfs.formats.cid import normalise
from on_api.core.ipfs.port import IpfsNode, NodePin
from on_api.core.metrics import Metrics
from on_api.core.models import Database
from on_api.core.models.database import moment_of
from on_api.core.services.content import leftovers, maintenance
from on_api.core.services.content.contents import Removal
from on_api.core.services.content.leases import release_dead_leases
from on_api.core.services.content.leftovers import SETTLED, Leftover, Whose
from on_api.core.services.content.maintenance import GARBAGE, SWEEP, Turn
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.pin_reconciler import PinReconciler

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_ROWS = 100
MOST_SWEPT_LEASES = 10_000
"""Dead leases that are looked for in one listing of the node's pins."""
NOTICE_SECONDS = 30.0
"""Seconds between two looks for newly dead leases, also during a slow removal."""
PAGE_PINS = 500
"""Pins of the node that are looked up together."""
REST_FACTOR = 20
"""Pause after a listing of all pins, as a multiple of the listing's duration."""


class LeftoverRemover:
    """Remover of leftovers, one in each process. `life`: the lifetime of a removal's claim."""

    def __init__(
        self,
        database: Database,
        node: IpfsNode,
        reconciler: PinReconciler,
        names: PinNames,
        metrics: Metrics,
        life: timedelta,
    ) -> None:
        self._database = database
        self._node = node
        self._reconciler = reconciler
        self._names = names
        self._metrics = metrics
        self._life = life
        self._noticed_at = float("-inf")

    async def step(self) -> bool:
        """Remove what can be removed now. Return whether there may be more at once. Raises a
        `NodeError`."""
        if not await self._read(leftovers.any_dead):
            return False
        # Always first, even during a garbage collection: a death noticed late proves nothing.
        await self._notice()
        if await self._read(_is_collecting):
            return False
        if await self._read(self._is_sweep_due):
            await self._sweep()
        listed = await self._read(lambda session: leftovers.some_listed(session, BATCH_ROWS))
        done = [await self._remove(leftover) for leftover in listed]
        cleared = await self._read(lambda session: leftovers.cleared(session, BATCH_ROWS))
        for lease_id in cleared:
            await self._end(lease_id)
        return (len(listed) == BATCH_ROWS and any(done)) or len(cleared) == BATCH_ROWS

    async def remove_of(self, job: uuid.UUID) -> None:
        """Remove what a job has listed at its end, as far as that is possible now. Raises a
        `NodeError`."""
        if await self._read(_is_collecting):
            return
        for leftover in await self._read(lambda s: leftovers.some_listed(s, BATCH_ROWS, job)):
            await self._remove(leftover)

    async def _notice(self) -> None:
        """Take all dead leases from their owners."""
        self._noticed_at = time.monotonic()
        while (
            await to_thread.run_sync(release_dead_leases, self._database, BATCH_ROWS) == BATCH_ROWS
        ):
            pass

    async def _keep_noticing(self) -> None:
        if time.monotonic() - self._noticed_at > NOTICE_SECONDS:
            await self._notice()

    async def _end(self, lease_id: uuid.UUID) -> None:
        await self._write(lambda session: leftovers.end_cleared(session, lease_id))

    async def _remove(self, leftover: Leftover) -> bool:
        """Unpin a leftover unless on-api keeps it. Return whether it is settled."""
        await self._keep_noticing()
        pin = await self._node.pin_status(leftover.cid)
        is_over = leftover.settled if pin is None else await self._let_go(leftover, pin)
        if is_over:
            await self._write(lambda session: leftovers.unlist(session, leftover))
        return is_over

    async def _let_go(self, leftover: Leftover, pin: NodePin) -> bool:
        """Unpin a leftover if its pin's name is that of the failed work. Return whether it is
        settled."""
        cid = leftover.cid
        job = await to_thread.run_sync(self._names.job_of, pin.name)
        if job is None:
            return True  # another program's pin, made before ours
        whose = await self._read(lambda session: leftovers.whose(session, leftover, job))
        if whose is Whose.LEFT:
            return await self._unpin(cid)
        if whose is Whose.ANOTHERS:  # in a restored database: `fsck` has a quarantine for it
            await self._write(lambda session: leftovers.is_kept(session, cid))
            return True
        return False

    async def _unpin(self, cid: str) -> bool:
        """Unpin content that on-api does not keep. Return False if it has to wait, e.g. for a pin
        under way."""

        def begin(session: Session) -> Removal | None:
            if not maintenance.may_begin(session):
                return None
            return leftovers.claim(session, cid, self._life)

        removal = await self._write(begin)
        if removal is None:
            return await self._write(lambda session: leftovers.is_kept(session, cid))
        try:
            removed = await self._reconciler.remove(removal)
        except NodeError as error:
            logger.warning(
                "could not unpin %s, which failed work has left on the node: %s", cid, error.details
            )
            return False
        if removed:
            self._metrics.unpinned.inc()
        return removed

    async def _sweep(self) -> None:
        """List the pins of dead leases, found by their names."""
        try:
            turn = await to_thread.run_sync(Turn, self._database, SWEEP)
        except Conflict:  # another process does it
            return
        started = time.monotonic()
        try:
            async with turn.kept():
                dead, began_at = await self._read(_dead_leases)
                await self._look_for(dead)
                await self._write(lambda s: leftovers.mark_swept(s, dead, began_at))
        finally:
            seconds = round(time.monotonic() - started, 3)
            await to_thread.run_sync(turn.end, {"seconds": seconds})

    async def _look_for(self, dead: Sequence[uuid.UUID]) -> None:
        prefix = await to_thread.run_sync(self._names.prefix)
        job_of = {self._names.of(lease_id): lease_id for lease_id in dead}
        page: dict[str, uuid.UUID] = {}

        async def look_up() -> None:
            found = dict(page)
            page.clear()
            await self._write(lambda session: leftovers.list_unknown(session, found))

        # The node returns the pins of one lease, or of all leases that exist or existed.
        wanted = next(iter(job_of)) if len(job_of) == 1 else prefix
        async for pin in self._node.pins(name=wanted):
            await self._keep_noticing()
            if (job := job_of.get(pin.name)) is None:
                continue
            try:
                page[normalise(pin.cid)] = job
            except BadRequest:
                continue
            if len(page) >= PAGE_PINS:
                await look_up()
        if page:
            await look_up()

    def _is_sweep_due(self, session: Session) -> bool:
        if not leftovers.to_be_swept(session, 1):
            return False
        last = maintenance.last_outcome(session, SWEEP)
        if last.finished_at is None or last.result is None:
            return True
        pause = max(SETTLED, timedelta(seconds=REST_FACTOR * float(last.result["seconds"])))
        return moment_of(session) - last.finished_at >= pause

    async def _read(self, work: Callable[[Session], T]) -> T:
        return await self._in_database(work, write=False)

    async def _write(self, work: Callable[[Session], T]) -> T:
        return await self._in_database(work, write=True)

    async def _in_database(self, work: Callable[[Session], T], *, write: bool) -> T:
        def run() -> T:
            with self._database.session_scope(write=write) as session:
                return work(session)

        return await to_thread.run_sync(run)


def _is_collecting(session: Session) -> bool:
    # During garbage collection the node answers only at its end: long after a claim expires.
    return maintenance.is_under_way(session, GARBAGE)


def _dead_leases(session: Session) -> tuple[Sequence[uuid.UUID], datetime]:
    """Return some dead leases, and the moment at which they were dead."""
    return leftovers.to_be_swept(session, MOST_SWEPT_LEASES), moment_of(session)
