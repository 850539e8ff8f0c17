"""A lease shared by all bundles of this process. It is kept while there is work, so that starting a
piece of work needs no transaction.

It is committed before the first piece begins and lives until the last one is recorded, so that a
check for running work sees it. It ends soon after the last piece. Once a piece has failed, or
garbage is about to be collected, it takes no new work and ends with the last piece. Knows nothing
of the work itself.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import timedelta

from anyio import to_thread
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from on_api.core.errors import OnApiError
from on_api.core.models import Database, Lease
from on_api.core.models.database import database_now, new_id
from on_api.core.services.content import leftovers, maintenance
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.shared.renewal import renewed

LINGER_SECONDS = 0.25
"""Seconds for which it is kept for the next piece of work, short enough for those who wait for its
end."""

logger = logging.getLogger(__name__)


class HeldLease:
    """The lease as lent to a piece of work. Every pin made under it is named `pin_name`."""

    def __init__(self, lease_id: uuid.UUID, token: uuid.UUID, pin_name: str) -> None:
        self.id = lease_id
        self.token = token
        self.pin_name = pin_name
        self.users = 0
        self.closing = False
        """True if no more work may begin under it."""
        self.failed = False
        """True if its row must stay when it ends: what was pinned under it is found by it."""
        self.over = asyncio.Event()
        self.lingering: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Let no more work begin; the lease ends with the last piece that uses it."""
        self.closing = True
        if not self.users:
            self.over.set()


class StandingLease:
    """Lender of the shared lease, which lives for `life` after each renewal. On one event loop.
    `ring` is called after a commit that leaves work for the worker."""

    def __init__(
        self,
        database: Database,
        names: PinNames,
        kind: str,
        life: timedelta,
        ring: Callable[[Session], None],
    ) -> None:
        self._database = database
        self._ring = ring
        self._names = names
        self._kind = kind
        self._life = life
        self._held: HeldLease | None = None
        self._opening = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[HeldLease]:
        """Lend the lease while the block runs. If the block fails, the lease's dead row stays.

        Raises `ServiceUnavailable` while garbage is collected.
        """
        lease = await self._current()
        lease.users += 1
        try:
            yield lease
        except BaseException:
            lease.failed = lease.closing = True
            raise
        finally:
            lease.users -= 1
            if not lease.users:
                if lease.closing:
                    lease.over.set()
                else:
                    loop = asyncio.get_running_loop()
                    lease.lingering = loop.call_later(LINGER_SECONDS, lease.close)

    async def close(self) -> None:
        """End the lease once no work uses it, and wait for that."""
        if self._held is not None:
            self._held.close()
        await asyncio.gather(*self._ending)

    async def _current(self) -> HeldLease:
        async with self._opening:
            lease = self._held
            if lease is None or lease.closing:
                lease = self._held = HeldLease(*await to_thread.run_sync(self._open))
                # It outlives the request that begins it, and must not go on in its trace.
                task = asyncio.create_task(self._keep(lease), context=Context())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            if lease.lingering is not None:
                lease.lingering.cancel()
                lease.lingering = None
            return lease

    async def _keep(self, lease: HeldLease) -> None:
        """Renew the lease until it is over, then end it."""
        async with renewed(lambda: self._renew(lease), self._life):
            await lease.over.wait()
        try:
            await to_thread.run_sync(self._end, lease)
        except OnApiError:
            logger.warning("could not release lease %s; it will expire", lease.id)

    def _open(self) -> tuple[uuid.UUID, uuid.UUID, str]:
        lease_id, token = new_id(), new_id()
        name = self._names.of(lease_id)  # the very first name needs a transaction of its own
        with self._database.session_scope() as session:
            maintenance.require_no_collection(session)
            until = database_now(self._life)
            session.add(Lease(id=lease_id, token=token, kind=self._kind, lease_until=until))
        return lease_id, token, name

    def _renew(self, lease: HeldLease) -> None:
        with self._database.session_scope() as session:
            session.execute(
                update(Lease)
                .where(Lease.id == lease.id, Lease.token == lease.token)
                .values(lease_until=database_now(self._life))
            )

    def _end(self, lease: HeldLease) -> None:
        mine = Lease.id == lease.id, Lease.token == lease.token
        with self._database.session_scope() as session:
            if lease.failed:
                now = database_now()
                ended = update(Lease).where(*mine).values(lease_until=now).returning(Lease.id)
                if session.scalar(ended) is None:
                    # The worker has ended it while this process slept, and looked too early.
                    leftovers.leave(session, lease.id, (), unsure=True)
                self._ring(session)
            else:
                session.execute(delete(Lease).where(*mine))
