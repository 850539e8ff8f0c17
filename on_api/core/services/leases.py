"""Leases on work that pins something: opened before its first byte, renewed while it runs, closed
with its result."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from anyio import to_thread
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import DatabaseUnavailable, ServiceUnavailable
from on_api.core.models import Database, Deployment, Lease
from on_api.core.models.database import insert_unless_there, new_id, utc_now

logger = logging.getLogger(__name__)

UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class LeaseHandle:
    """A lease held by this process. `pin_name` is what every pin made under it is called."""

    id: uuid.UUID
    token: uuid.UUID
    pin_name: str


class LeaseService:
    """Opens and renews leases of `seconds`; what is left of a crash is dead after that time."""

    def __init__(self, database: Database, seconds: int) -> None:
        self._database = database
        self._life = timedelta(seconds=seconds)
        self._deployment: str | None = None

    def open(self, kind: str, user_id: uuid.UUID, key_id: uuid.UUID) -> LeaseHandle:
        """Commit a lease for work that is about to begin."""
        lease = Lease(
            id=new_id(),
            token=new_id(),
            kind=kind,
            user_id=user_id,
            key_id=key_id,
            lease_until=utc_now() + self._life,
            reserved_bytes=0,
        )
        with self._database.session_scope() as session:
            if self._deployment is None:
                self._deployment = deployment_name(session)
            session.add(lease)
        return LeaseHandle(lease.id, lease.token, f"on-api/{self._deployment}/{lease.id}")

    @asynccontextmanager
    async def kept_alive(self, lease: LeaseHandle) -> AsyncIterator[None]:
        """Renew the lease while the block runs."""
        renewing = asyncio.create_task(self._keep_renewing(lease))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    def close(self, session: Session, lease: LeaseHandle) -> None:
        """End the lease in the transaction that records its result.

        Raises `ServiceUnavailable` when it is not ours any more: somebody has cleaned up after us,
        and what we pinned may be gone.
        """
        closed = session.scalar(
            delete(Lease)
            .where(Lease.id == lease.id, Lease.token == lease.token)
            .returning(Lease.id)
        )
        if closed is None:
            raise ServiceUnavailable("This took too long and was given up; send it again.")

    def abandon(self, lease: LeaseHandle, *, pinned: bool) -> None:
        """Give the work up. What may have been `pinned` leaves a dead lease, by which its pins
        are found."""
        with self._database.session_scope() as session:
            if pinned:
                session.execute(
                    update(Lease).where(Lease.id == lease.id).values(lease_until=utc_now())
                )
            else:
                session.execute(delete(Lease).where(Lease.id == lease.id))

    async def _keep_renewing(self, lease: LeaseHandle) -> None:
        while True:
            await asyncio.sleep(self._life.total_seconds() / 4)
            try:
                await to_thread.run_sync(self._renew, lease)
            except DatabaseUnavailable:
                logger.warning("could not renew lease %s; trying again", lease.id)

    def _renew(self, lease: LeaseHandle) -> None:
        with self._database.session_scope() as session:
            session.execute(
                update(Lease)
                .where(Lease.id == lease.id, Lease.token == lease.token)
                .values(lease_until=utc_now() + self._life)
            )


def deployment_name(session: Session) -> str:
    """This deployment's name, made at the first call."""
    insert_unless_there(session, Deployment, id=1, name=new_id().hex[:12], created_at=utc_now())
    return session.scalars(select(Deployment.name)).one()
