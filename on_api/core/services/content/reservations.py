"""Reservations: quota of a user and limit of a key, reserved before an upload's bytes arrive.

A reservation belongs to a lease and is settled with it: the bytes really stored are charged, the
rest is released. Unknown lengths are reserved in slices, so that a limit is never exceeded and
transactions are rare. All of this is in the database, so that it is exact over all processes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from on_api.core.errors import KeyLimitReached, QuotaExceeded, Unauthorized
from on_api.core.models import ApiKey, Lease, User, UserUsage
from on_api.core.services.content.quota import Room

SLICE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Announced:
    """Length of an upload as known before its bytes: at least `least`, at most `most`; None:
    unknown.

    The two differ for multipart, whose length includes boundaries and headers.
    """

    least: int = 0
    most: int | None = None

    def next_slice(self, needed: int) -> int:
        """Return how much to reserve when `needed` bytes in all are needed: a slice more, but no
        more than can come."""
        generous = needed + SLICE_BYTES
        return max(needed, generous if self.most is None else min(generous, self.most))


def reserve_at_once(session: Session, user_id: uuid.UUID, quota: int, wanted: int) -> bool:
    """Reserve `wanted` bytes of a quota in one statement. Returns False, reserving nothing, if less
    is left.

    For keys without a limit of their own: most uploads need no more than this.
    """
    reserved = session.execute(
        update(UserUsage)
        .where(
            UserUsage.user_id == user_id,
            UserUsage.storage_bytes + UserUsage.reserved_bytes + wanted <= quota,
        )
        .values(reserved_bytes=UserUsage.reserved_bytes + wanted)
        .returning(UserUsage.user_id)
        .execution_options(synchronize_session=False)
    )
    return reserved.first() is not None


def reserve(session: Session, usage: UserUsage, lease: Lease, *, wanted: int, needed: int) -> None:
    """Raise the lease's reservation to `wanted` bytes, or to as many of them as are left, at least
    `needed`.

    `usage` is locked. Raises `QuotaExceeded` or `KeyLimitReached` when less than `needed` is left.
    """
    before = lease.reserved_bytes
    left = wanted - before
    if left <= 0:
        return
    quota = quota_of(session, usage.user_id)
    left = Room.under(quota, usage).at_most(left)
    if before + left < needed:
        raise QuotaExceeded
    key = session.get(ApiKey, lease.key_id, with_for_update=True)
    if key is not None and key.max_bytes is not None:
        left = min(left, key.max_bytes - key.bytes_used)
        if before + left < needed:
            raise KeyLimitReached
    change(session, usage, lease, left)


def settle(
    session: Session, usage: UserUsage, key_id: uuid.UUID | None, reserved: int, uploaded: int
) -> None:
    """Release the `reserved` bytes of an ended lease and count `uploaded` bytes for the key, if it
    has a limit; `usage` is charged already.

    Raises `QuotaExceeded` when the charge exceeds the quota after all (the DAG's own overhead).
    """
    usage.reserved_bytes -= reserved
    if key_id is not None:
        session.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id)
            .values(bytes_used=ApiKey.bytes_used + uploaded - reserved)
        )
    if Room.of(usage).is_exceeded:
        raise QuotaExceeded


def release(session: Session, usage: UserUsage, lease: Lease) -> None:
    """Release all bytes that a lease has reserved, when its work is given up or dead."""
    change(session, usage, lease, -lease.reserved_bytes)


def change(session: Session, usage: UserUsage, lease: Lease, size: int) -> None:
    """Reserve `size` bytes more (negative: fewer) for a lease, without checking for room; `usage`
    is locked."""
    lease.reserved_bytes += size
    usage.reserved_bytes += size
    if lease.key_id is not None:
        session.execute(
            update(ApiKey)
            .where(ApiKey.id == lease.key_id, ApiKey.max_bytes.is_not(None))
            .values(bytes_used=ApiKey.bytes_used + size)
        )
    session.flush()


def quota_of(session: Session, user_id: uuid.UUID) -> int | None:
    """Return a user's quota in bytes; None: no limit. Raises `Unauthorized` when the user is
    gone."""
    found = session.execute(select(User.storage_quota).where(User.id == user_id)).one_or_none()
    if found is None:
        raise Unauthorized
    quota: int | None = found.storage_quota
    return quota
