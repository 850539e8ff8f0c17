"""Leftovers of failed work on the node, listed by its dead lease until they are removed. The
database half of `worker/leftovers.py`.

A pin is removed as content always is (`contents.begin_removal`), so content that a user holds, or
stores at this moment, stays.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from sqlalchemy import and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from on_api.core.errors import Unauthorized
from on_api.core.models import Content, Lease, LeasedPin, Pin, UserUsage
from on_api.core.models.content import PINNED, UNPINNING
from on_api.core.models.database import (
    database_now,
    dialect_of,
    insert_into,
    insert_or_lock,
    new_id,
)
from on_api.core.models.pin import PINNING, QUEUED
from on_api.core.services.content import contents, reservations
from on_api.core.services.content.contents import NEVER, Removal

DEAD = "dead"
"""Kind of a lease whose owner is gone: what was pinned under it is found by its name."""
LEFT = "left"
"""Kind of a lease whose work has ended without a result: what may be pinned under it is listed."""
ROWS_AT_ONCE = 500
"""Rows in one statement."""
SETTLED = timedelta(seconds=5)
"""Time after the end of work until the node is taken to pin nothing more for it."""
NOTICED = timedelta(minutes=10)
"""Time within which a worker that is up, or starts again, notices that a lease has expired. One
that is found later proves nothing: in a restored database it expired through the backup's age."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Pin that may be unreferenced. `settled`: if the node does not have it now, it will not appear
    later."""

    lease_id: uuid.UUID
    cid: str
    settled: bool


class Whose(Enum):
    """Owner of a listed pin, by the job that it is named after."""

    LEFT = auto()
    """The work has ended: unreferenced, unless its content is kept."""
    AWAITED = auto()
    """The job is still running."""
    ANOTHERS = auto()
    """Unknown work: newer than this database, or there to list the pin itself."""


def leave(
    session: Session,
    job: uuid.UUID,
    cids: Iterable[str],
    *,
    unsure: bool = False,
    due_in: timedelta = timedelta(0),
) -> None:
    """List what the node may have pinned for a job that ends without a result. `unsure`: there may
    be more, under the job's name. `due_in`: longest time for which the node may still be
    pinning."""
    lease = insert_or_lock(
        session,
        Lease,
        ["id"],
        id=job,
        kind=DEAD if unsure else LEFT,
        token=new_id(),
        lease_until=database_now(due_in),
        reserved_bytes=0,
    )
    lease.lease_until = database_now(due_in)  # there may be one already, of an earlier failure
    if unsure:  # earlier looks through the pins do not count
        lease.kind, lease.swept_at = DEAD, None
    session.flush()
    list_pins(session, job, cids)


def list_pins(session: Session, lease_id: uuid.UUID, cids: Iterable[str]) -> None:
    """List what the node may have pinned under a lease."""
    _insert_listed(session, dict.fromkeys(cids, lease_id))


def _insert_listed(session: Session, leases: Mapping[str, uuid.UUID]) -> None:
    """Insert `leases`, lease by CID, in order of CID, as all writers of several do."""
    rows = [{"lease_id": leases[cid], "cid": cid} for cid in sorted(leases)]
    insert = insert_into(dialect_of(session), LeasedPin)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        session.execute(insert.values(some).on_conflict_do_nothing())


def forget(session: Session, job: uuid.UUID, cids: Collection[str]) -> None:
    """Unlist pins that are referenced now, of a job without a reservation. The lease ends with its
    last one."""
    mine = LeasedPin.lease_id == job
    session.execute(
        delete(LeasedPin)
        .where(mine, LeasedPin.cid.in_(cids))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        delete(Lease)
        .where(Lease.id == job, Lease.kind == LEFT, ~exists().where(mine))
        .execution_options(synchronize_session=False)
    )


def reserved(session: Session, user_id: uuid.UUID) -> int:
    """Return the bytes that stay reserved for a user because failed work has left them on the
    node."""
    total = select(func.coalesce(func.sum(Lease.reserved_bytes), 0)).where(
        Lease.user_id == user_id, Lease.kind.in_((DEAD, LEFT))
    )
    return int(session.scalar(total) or 0)


def any_dead(session: Session) -> bool:
    """Return whether any lease has expired. Reads only: on SQLite looking must not take the
    writer's place."""
    return bool(session.scalar(select(exists().where(Lease.lease_until <= database_now()))))


def some_listed(
    session: Session, limit: int, lease_id: uuid.UUID | None = None
) -> Sequence[Leftover]:
    """Return up to `limit` listed pins, in random order, of one lease or all: pins that have to
    wait do not block others."""
    listed = (
        select(LeasedPin.lease_id, LeasedPin.cid, Lease.lease_until < database_now(-SETTLED))
        .join(Lease, Lease.id == LeasedPin.lease_id)
        .where(Lease.kind.in_((DEAD, LEFT)), Lease.lease_until <= database_now())
    )
    if lease_id is not None:
        listed = listed.where(LeasedPin.lease_id == lease_id)
    return [Leftover(*row) for row in session.execute(listed.order_by(func.random()).limit(limit))]


def claim(session: Session, cid: str, life: timedelta) -> Removal | None:
    """Claim, for `life`, the unpinning of a content that on-api does not keep. Returns None if it
    can't be claimed."""
    return contents.begin_removal(session, cid, grace=NEVER, life=life)


def whose(session: Session, leftover: Leftover, job: uuid.UUID) -> Whose:
    """Return whose a listed pin is that is named after `job`."""
    status = session.scalar(select(Pin.status).where(Pin.id == job))
    if status is None:
        return Whose.LEFT if job == leftover.lease_id else Whose.ANOTHERS
    return Whose.AWAITED if status in (QUEUED, PINNING) else Whose.LEFT


def is_kept(session: Session, cid: str) -> bool:
    """Return whether a content's row accounts for its pin, which is then removed with the content.
    Marks the pin as `pinned_too` where a bundle covers the content."""
    content = contents.lock(session, cid)
    if content is None or content.state != PINNED:
        return False
    if content.pin_root_id != cid:  # a bundle covers it: the node has pinned it as well
        content.pinned_too = True
    return True


def unlist(session: Session, leftover: Leftover) -> None:
    """Unlist a pin that is gone or referenced."""
    session.execute(
        delete(LeasedPin).where(
            LeasedPin.lease_id == leftover.lease_id, LeasedPin.cid == leftover.cid
        )
    )


def to_be_swept(session: Session, limit: int) -> Sequence[uuid.UUID]:
    """Return up to `limit` dead leases whose names must be looked for among the node's pins."""
    dead = select(Lease.id).where(Lease.kind == DEAD, Lease.lease_until <= database_now())
    return session.scalars(dead.order_by(func.random()).limit(limit)).all()


def list_unknown(session: Session, pins: Mapping[str, uuid.UUID]) -> None:
    """List those pins (CID → dead lease of its name) that no content's row accounts for."""
    # A member may have a pin of its own that its row does not tell of.
    tells = or_(Content.pin_root_id == Content.cid, Content.pinned_too)
    known = select(Content.cid).where(
        Content.cid.in_(pins),
        or_(Content.state == UNPINNING, and_(Content.state == PINNED, tells)),
    )
    unknown = set(pins) - set(session.scalars(known))
    there = set(session.scalars(select(Lease.id).where(Lease.id.in_(set(pins.values())))))
    _insert_listed(session, {cid: pins[cid] for cid in unknown if pins[cid] in there})


def mark_swept(session: Session, lease_ids: Collection[uuid.UUID], began_at: datetime) -> None:
    """Record a look through all of the node's pins that began at `began_at`. After two of them,
    `SETTLED` apart, all pins of a lease are listed."""
    mine = (Lease.id.in_(lease_ids), Lease.kind == DEAD)
    session.execute(
        update(Lease)
        .where(*mine, Lease.swept_at <= began_at - SETTLED)
        .values(kind=LEFT)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Lease)
        .where(*mine, Lease.swept_at.is_(None))
        .values(swept_at=began_at)
        .execution_options(synchronize_session=False)
    )


def cleared(session: Session, limit: int) -> Sequence[uuid.UUID]:
    """Return up to `limit` leases under which nothing is pinned any more."""
    listed = exists().where(LeasedPin.lease_id == Lease.id)
    return session.scalars(select(Lease.id).where(Lease.kind == LEFT, ~listed).limit(limit)).all()


def end_cleared(session: Session, lease_id: uuid.UUID) -> None:
    """Delete a lease and release its reservation, unless more was listed meanwhile."""
    user_id = session.scalar(select(Lease.user_id).where(Lease.id == lease_id))
    usage = None if user_id is None else usage_if_there(session, user_id)
    lease = session.get(Lease, lease_id, with_for_update=True, populate_existing=True)
    if lease is None or lease.kind != LEFT:
        return
    if not session.scalar(select(exists().where(LeasedPin.lease_id == lease_id))):
        end(session, usage, lease)


def end(session: Session, usage: UserUsage | None, lease: Lease) -> None:
    """Delete a lease and release its reservation; both are locked."""
    if usage is not None:
        reservations.release(session, usage, lease)
    session.delete(lease)
    session.flush()


def usage_if_there(session: Session, user_id: uuid.UUID) -> UserUsage | None:
    """Lock a user's counters and return them; None for a user who is gone."""
    try:
        return contents.lock_usage(session, user_id)
    except Unauthorized:
        return None
