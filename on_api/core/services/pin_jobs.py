"""Pins as jobs: claimed under a lease, renewed, and given an end. The database half of the worker.

Every change asks for the lease's token: who lost it changes nothing any more. A pinned pin is never
claimed, so it never turns back.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, exists, func, literal_column, or_, select, update
from sqlalchemy.orm import Session, aliased

from on_api.core.errors import InsufficientFunds, Unauthorized
from on_api.core.ipfs.client import DagStat
from on_api.core.models import Pin, UserUsage
from on_api.core.models.database import new_id, utc_now
from on_api.core.models.pin import DETAILS_LENGTH, FAILED, PINNING, QUEUED
from on_api.core.services import contents, events, pins

UNDER_WAY = (QUEUED, PINNING)
MOST_COUNTED = 10_000
# Written out: only so SQLite sees that the queue's index is about them.
_IS_UNDER_WAY = Pin.status.in_([literal_column(f"'{status}'") for status in UNDER_WAY])


@dataclass(frozen=True, slots=True)
class Claim:
    """A pin to be worked on by whoever holds the token, and what the work needs to know of it.

    `attempts` counts this one; `details` are the last one's. `room`: bytes that the user's quota
    leaves; None: no limit. `known`: bytes of the DAG if on-api keeps it already, and no removal
    begins while this pin waits.
    """

    id: uuid.UUID
    token: uuid.UUID
    user_id: uuid.UUID
    cid: str
    origins: tuple[str, ...]
    attempts: int
    deadline_at: datetime
    removed: bool
    room: int | None
    details: str | None
    known: int | None


def next_user(
    session: Session, behind: uuid.UUID | None, served: Collection[uuid.UUID], *, fetch: bool
) -> uuid.UUID | None:
    """The next user with a pin that is due, in a fixed order: each in turn gets a share; the
    `served` have theirs."""
    statement = select(Pin.user_id).where(_is_due(fetch=fetch)).order_by(Pin.user_id).limit(1)
    if behind is not None:
        statement = statement.where(Pin.user_id > behind)
    if served:
        statement = statement.where(Pin.user_id.not_in(served))
    return session.scalar(statement)


def claim(
    session: Session, user_id: uuid.UUID, limit: int, life: timedelta, *, fetch: bool
) -> Sequence[Claim]:
    """Take up to `limit` of a user's pins that are due, for `life`.

    `fetch`: those whose blocks are known not to be all here, else the others. No two claims are
    on one CID at the same time.
    """
    found = session.scalars(
        select(Pin)
        .where(Pin.user_id == user_id, _is_due(fetch=fetch))
        .order_by(Pin.due_at, Pin.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    now = utc_now()
    # Not locked: how much room there really is shows at the end.
    usage = session.get(UserUsage, user_id)
    room = None if usage is None else contents.room_of(session, usage)
    known = contents.kept_sizes(session, {pin.cid for pin in found})
    claims: dict[str, Claim] = {}
    for pin in found:
        if pin.cid in claims or _is_worked_on(session, pin):
            continue
        pin.lease_token, pin.lease_until = new_id(), now + life
        pin.attempts += 1
        if fetch:
            pin.status = PINNING
        claims[pin.cid] = Claim(
            id=pin.id,
            token=pin.lease_token,
            user_id=user_id,
            cid=pin.cid,
            origins=tuple(pin.origins),
            attempts=pin.attempts,
            deadline_at=pin.deadline_at,
            removed=pin.removed_at is not None,
            room=None if room is None else max(room, 0) + _freed_by(session, pin),
            details=pin.details,
            known=known.get(pin.cid),
        )
    session.flush()
    return list(claims.values())


def renew(
    session: Session, work: Mapping[uuid.UUID, tuple[uuid.UUID, DagStat | None]], life: timedelta
) -> set[uuid.UUID]:
    """Renew leases (pin → token) and show how much is there. Returns the pins that are not to be
    worked on any more: removed, or claimed by somebody else."""
    until = utc_now() + life
    going_on = set()
    for pin_id, (token, stat) in work.items():
        seen = {} if stat is None else {"dag_size": stat.size, "blocks": stat.blocks}
        kept = session.execute(
            update(Pin)
            .where(Pin.id == pin_id, Pin.lease_token == token)
            .values(lease_until=until, **seen)
            .returning(Pin.removed_at)
        ).one_or_none()
        if kept is not None and kept.removed_at is None:
            going_on.add(pin_id)
    return set(work) - going_on


def finish(session: Session, claim: Claim, stat: DagStat, secured: Mapping[str, int]) -> bool:
    """The node has pinned it: make it a reference. False when the claim was lost or the pin was
    removed: then the node has pinned it for nobody.

    Raises `contents.NotSecuredError`, or `InsufficientFunds` when it is more than the quota allows.
    """
    usage = _lock_usage(session, claim)
    pin = _mine(session, claim)
    if usage is None or pin is None:
        return False
    if pin.removed_at is not None:
        _end_removed(session, usage, pin)
        return False
    pins.lock_contents(session, pin)
    charged = usage.storage_bytes
    contents.add_reference(session, usage, pin.cid, stat.size, secured)
    pin.blocks = stat.blocks or None
    pins.mark_pinned(session, usage, pin, stat.size)
    # Asked when what it replaces is let go.
    room = contents.room_of(session, usage)
    if room is not None and room < 0 and usage.storage_bytes > charged:
        raise InsufficientFunds
    return True


def fail(session: Session, claim: Claim, details: str) -> bool:
    """Give a pin up for good, saying why. False when the claim was lost or the pin was removed."""
    usage = _lock_usage(session, claim)
    pin = _mine(session, claim)
    if usage is None or pin is None:
        return False
    if pin.removed_at is not None:
        _end_removed(session, usage, pin)
        return False
    pins.release_kept(session, usage, pin.id)
    pin.status, pin.details = FAILED, details[:DETAILS_LENGTH]
    pin.lease_token = pin.lease_until = None
    events.record(session, pin.user_id, "pin.failed", pin.id, cid=pin.cid, details=pin.details)
    return True


def put_back(
    session: Session,
    claim: Claim,
    *,
    due_in: timedelta = timedelta(0),
    details: str | None = None,
    needs_fetch: bool = False,
    counted: bool = True,
) -> None:
    """Give a pin back to the queue; nothing if the claim was lost. `counted=False`: as if it had
    not been tried."""
    usage = _lock_usage(session, claim)
    pin = _mine(session, claim)
    if usage is None or pin is None:
        return
    if pin.removed_at is not None:
        _end_removed(session, usage, pin)
        return
    pin.status, pin.due_at = QUEUED, utc_now() + due_in
    pin.lease_token = pin.lease_until = None
    pin.needs_fetch = pin.needs_fetch or needs_fetch
    pin.details = None if details is None else details[:DETAILS_LENGTH]
    if not counted:
        pin.attempts -= 1


def queue_length(session: Session) -> int:
    """How many pins wait or are worked on; counted up to `MOST_COUNTED`."""
    some = select(Pin.id).where(_IS_UNDER_WAY).limit(MOST_COUNTED)
    return session.scalar(select(func.count()).select_from(some.subquery())) or 0


def _is_due(*, fetch: bool) -> ColumnElement[bool]:
    """Waiting, its time has come, and nobody works on it or on another pin of the same CID."""
    now = utc_now()
    other = aliased(Pin)
    return and_(
        _IS_UNDER_WAY,
        Pin.needs_fetch.is_(fetch),
        Pin.due_at <= now,
        or_(Pin.lease_until.is_(None), Pin.lease_until < now),
        ~exists().where(other.cid == Pin.cid, other.id != Pin.id, other.lease_until > now),
    )


def _is_worked_on(session: Session, pin: Pin) -> bool:
    """Whether somebody has claimed another pin of the same CID since it was found to be due.

    On PostgreSQL two claims at the same moment don't see each other: the second finds the lock
    that the first holds until it has committed. On SQLite there is one writer.
    """
    if session.get_bind().dialect.name != "postgresql":
        return False
    key = func.hashtextextended(pin.cid, 0)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(key))):
        return True
    other = exists().where(Pin.cid == pin.cid, Pin.id != pin.id, Pin.lease_until > utc_now())
    return bool(session.scalar(select(other)))


def _freed_by(session: Session, pin: Pin) -> int:
    return contents.freed_by(session, pin.user_id, pins.kept_cids(session, pin.id))


def _end_removed(session: Session, usage: UserUsage, pin: Pin) -> None:
    pins.release_kept(session, usage, pin.id)
    session.delete(pin)
    session.flush()


def _lock_usage(session: Session, claim: Claim) -> UserUsage | None:
    try:
        return contents.lock_usage(session, claim.user_id)
    except Unauthorized:  # deleted meanwhile, and its pins with it
        return None


def _mine(session: Session, claim: Claim) -> Pin | None:
    return session.scalar(
        select(Pin)
        .where(Pin.id == claim.id, Pin.lease_token == claim.token)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
