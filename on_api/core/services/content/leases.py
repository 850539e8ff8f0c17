"""Leases on work that pins something: opened before its first byte, renewed while it runs, closed
with its result. The database's clock decides when one has expired.

Pins of failed work are listed by its dead lease and stay reserved; pins left by a crash are found
by their names. `worker/leftovers.py` removes both.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

from sqlalchemy import case, delete, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import ServiceUnavailable
from on_api.core.models import Database, Lease, UserUsage
from on_api.core.models.database import database_now, new_id
from on_api.core.services.content import contents, leftovers, maintenance, reservations
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.reservations import Announced
from on_api.core.services.shared.batching import Batcher
from on_api.core.services.shared.renewal import renewed

UPLOAD = "upload"
GIVEN_UP = "The request took too long and was cancelled; send it again."


T = TypeVar("T")


class Holder(Protocol):
    """User and key of the work; the key's `max_bytes` is enforced."""

    @property
    def user_id(self) -> uuid.UUID:
        """User who is charged."""
        ...

    @property
    def key_id(self) -> uuid.UUID | None:
        """Key in use; None for a job's work."""
        ...

    @property
    def max_bytes(self) -> int | None:
        """Bytes that the key may upload in all; None: no limit."""
        ...


@dataclass(frozen=True, slots=True)
class JobHolder:
    """Holder of work that a job does for a user, without a key."""

    user_id: uuid.UUID
    key_id: None = None
    max_bytes: None = None


@dataclass(slots=True)
class LeaseHandle:
    """Lease held by this process. Every pin made under it is named `pin_name`.

    `limited_key`: the key, if it has `max_bytes`. `covered`: bytes reserved; None when nothing
    limits the work. `pinned`: bytes by CID of what the node has pinned under it, or may have.
    `unsure`: the node may have pinned something whose CID is not known.
    """

    id: uuid.UUID
    token: uuid.UUID
    user_id: uuid.UUID
    limited_key: uuid.UUID | None
    pin_name: str
    announced: Announced
    covered: int | None
    pinned: dict[str, int] = field(default_factory=dict)
    unsure: bool = False

    async def sent(self, source: AsyncIterator[T]) -> AsyncIterator[T]:
        """Pass on what the node is to store and pin under the lease. Once the node has had all of
        it, only its answer (`confirm`) says what it did: a body that breaks off is not stored."""
        async for piece in source:
            yield piece
            del piece  # not held while waiting for the next one
        self.unsure = True

    def confirm(self, cid: str, size: int) -> None:
        """Record the pin that the node has confirmed."""
        self.pinned[cid] = size
        self.unsure = False


class LeaseService:
    """Service that opens and renews leases of `seconds`, after which a crashed one has expired.
    `ring` is called after a commit that leaves work for the worker."""

    def __init__(
        self,
        database: Database,
        names: PinNames,
        seconds: int,
        ring: Callable[[Session], None],
    ) -> None:
        self._database = database
        self._ring = ring
        self._names = names
        self._life = timedelta(seconds=seconds)
        self._opening = Batcher(self._open_all)

    def open(self, kind: str, holder: Holder, announced: Announced) -> LeaseHandle:
        """Commit a lease and its reservation for work that is about to begin.

        Raises `QuotaExceeded` or `KeyLimitReached` when the announced bytes are not available,
        `ServiceUnavailable` while garbage is collected.
        """
        return self._open_all([(kind, holder, announced)])[0]

    async def open_together(self, kind: str, holder: Holder, announced: Announced) -> LeaseHandle:
        """Open a lease in one transaction with the user's other calls of the same moment. Raises as
        `open` does."""
        return await self._opening.do(holder.user_id, (kind, holder, announced))

    def _open_all(self, wanted: Sequence[tuple[str, Holder, Announced]]) -> list[LeaseHandle]:
        # Before the transaction: the very first name needs one of its own.
        names = {lease_id: self._names.of(lease_id) for lease_id in (new_id() for _ in wanted)}
        with self._database.session_scope() as session:
            maintenance.require_no_collection(session)
            return [
                self._open(session, lease_id, pin_name, *each)
                for (lease_id, pin_name), each in zip(names.items(), wanted, strict=True)
            ]

    def _open(
        self,
        session: Session,
        lease_id: uuid.UUID,
        pin_name: str,
        kind: str,
        holder: Holder,
        announced: Announced,
    ) -> LeaseHandle:
        lease = Lease(
            id=lease_id,
            token=new_id(),
            kind=kind,
            user_id=holder.user_id,
            key_id=holder.key_id,
            lease_until=database_now(self._life),
            reserved_bytes=0,
        )
        quota = reservations.quota_of(session, holder.user_id)
        limited = quota is not None or holder.max_bytes is not None
        if limited:
            self._reserve(session, holder, lease, announced, quota)
        session.add(lease)
        return LeaseHandle(
            id=lease.id,
            token=lease.token,
            user_id=holder.user_id,
            limited_key=holder.key_id if holder.max_bytes is not None else None,
            pin_name=pin_name,
            announced=announced,
            covered=lease.reserved_bytes if limited else None,
        )

    def _reserve(
        self,
        session: Session,
        holder: Holder,
        lease: Lease,
        announced: Announced,
        quota: int | None,
    ) -> None:
        least = announced.least
        wanted = announced.next_slice(least)
        if (
            quota is not None
            and holder.max_bytes is None
            and reservations.reserve_at_once(session, holder.user_id, quota, wanted)
        ):
            lease.reserved_bytes = wanted
            return
        usage = contents.lock_usage(session, holder.user_id)
        session.add(lease)
        reservations.reserve(session, usage, lease, wanted=wanted, needed=least)

    def cover(self, handle: LeaseHandle, received: int) -> None:
        """Reserve more, before `received` bytes in all are passed on. Raises `QuotaExceeded` or
        `KeyLimitReached`, and `ServiceUnavailable` when the lease is no longer ours."""
        with self._database.session_scope() as session:
            usage = contents.lock_usage(session, handle.user_id)
            lease = _mine(session, handle)
            wanted = handle.announced.next_slice(received)
            reservations.reserve(session, usage, lease, wanted=wanted, needed=received)
            handle.covered = lease.reserved_bytes

    def kept_alive(self, handle: LeaseHandle) -> AbstractAsyncContextManager[None]:
        """Renew the lease while the block runs."""
        return renewed(lambda: self._renew(handle), self._life)

    def close(self, session: Session, handle: LeaseHandle, usage: UserUsage, uploaded: int) -> None:
        """End the lease in the transaction that records its result, and settle its reservation.

        `uploaded` bytes are counted for the key. Raises `ServiceUnavailable` when the lease is no
        longer ours: the worker has cleaned up, and our pins may be gone.
        """
        reserved = session.scalar(
            delete(Lease)
            .where(Lease.id == handle.id, Lease.token == handle.token)
            .returning(Lease.reserved_bytes)
            .execution_options(synchronize_session=False)
        )
        if reserved is None:
            raise ServiceUnavailable(GIVEN_UP)
        reservations.settle(session, usage, handle.limited_key, reserved, uploaded)

    def abandon(self, handle: LeaseHandle) -> None:
        """Give up the work. If it has pinned anything, or may have, a dead lease stays that lists
        it and reserves its bytes until the worker has removed it."""
        with self._database.session_scope() as session:
            usage = leftovers.usage_if_there(session, handle.user_id)
            lease = session.get(Lease, handle.id, with_for_update=True)
            nothing = not handle.pinned and not handle.unsure
            if nothing:
                if lease is not None:
                    leftovers.end(session, usage, lease)
                return
            if lease is None:
                # Closed by a commit whose answer was lost, or ended by the worker while we slept.
                leftovers.leave(session, handle.id, handle.pinned, unsure=handle.unsure)
            else:
                lease.kind = leftovers.DEAD if handle.unsure else leftovers.LEFT
                lease.swept_at = None  # the worker may have looked too early, while we slept
                lease.token, lease.lease_until = new_id(), database_now()
                if usage is not None and not handle.unsure:
                    left = sum(handle.pinned.values())
                    reservations.change(session, usage, lease, left - lease.reserved_bytes)
                leftovers.list_pins(session, handle.id, handle.pinned)
            self._ring(session)

    def _renew(self, handle: LeaseHandle) -> None:
        with self._database.session_scope() as session:
            session.execute(
                update(Lease)
                .where(Lease.id == handle.id, Lease.token == handle.token)
                .values(lease_until=database_now(self._life))
            )


def release_dead_leases(database: Database, limit: int = 100) -> int:
    """Take up to `limit` expired leases from their owners: one that was only asleep can't renew or
    close its lease any more. Returns how many.

    Their reservations stay until what was pinned under them is removed. A lease that has been
    expired for more than `NOTICED` may come from a restored backup: users may keep pins that its
    work made after the backup. Pins that it does not list are left to `fsck` and its quarantine.
    """
    is_due = (
        Lease.lease_until <= database_now(),
        Lease.kind.not_in((leftovers.DEAD, leftovers.LEFT)),
    )
    was_noticed = Lease.lease_until > database_now(-leftovers.NOTICED)
    with database.session_scope(write=False) as session:
        found = session.scalars(select(Lease.id).where(*is_due).limit(limit)).all()
    if not found:
        return 0
    with database.session_scope() as session:
        taken = session.scalars(
            update(Lease)
            .where(Lease.id.in_(found), *is_due)
            .values(
                kind=case((was_noticed, leftovers.DEAD), else_=leftovers.LEFT),
                token=new_id(),
            )
            .returning(Lease.id)
            .execution_options(synchronize_session=False)
        )
        return len(taken.all())


def _mine(session: Session, handle: LeaseHandle) -> Lease:
    lease = session.scalar(
        select(Lease).where(Lease.id == handle.id, Lease.token == handle.token).with_for_update()
    )
    if lease is None:
        raise ServiceUnavailable(GIVEN_UP)
    return lease
