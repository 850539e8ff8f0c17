"""What work that failed has left on the node: listed by its dead lease until it is removed. The
database half of `worker/leftovers.py`.

A pin is removed as content always is (`contents.begin_removal`), so nobody who holds the same
content, or stores it at this moment, is robbed.
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
LISTED_AT_ONCE = 500
"""Pins in one statement."""
SETTLED = timedelta(seconds=5)
"""After its end work is not believed to pin anything more: the node may still be at it."""
NOTICED = timedelta(minutes=10)
"""A lease that died so recently has died under a worker's eyes, or while one was started again. One
that is found dead for longer proves nothing: in a restored database it died of the backup's age."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A pin that may be nobody's. `settled`: where it isn't there, it will not come any more."""

    lease_id: uuid.UUID
    cid: str
    settled: bool


class Whose(Enum):
    """Whose a listed pin is, by the job that it is named after."""

    LEFT = auto()
    """Of work that has ended: nobody's, unless its content is kept."""
    AWAITED = auto()
    """Of a job that goes on."""
    ANOTHERS = auto()
    """Of work that we know nothing of: newer than this database, or there to list it itself."""


def leave(
    session: Session,
    job: uuid.UUID,
    cids: Iterable[str],
    *,
    unsure: bool = False,
    due_in: timedelta = timedelta(0),
) -> None:
    """List what the node may have pinned for a job that ends without a result. `unsure`: there may
    be more, by the job's name. `due_in`: it may still be at it, and ends in so long at most."""
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
    if unsure:  # all that was looked at until now doesn't count
        lease.kind, lease.swept_at = DEAD, None
    session.flush()
    list_pins(session, job, cids)


def list_pins(session: Session, lease_id: uuid.UUID, cids: Iterable[str]) -> None:
    """List what the node may have pinned under a lease."""
    _insert_listed(session, dict.fromkeys(cids, lease_id))


def _insert_listed(session: Session, leases: Mapping[str, uuid.UUID]) -> None:
    """`leases`: by CID. In their order, which all keep who insert several."""
    rows = [{"lease_id": leases[cid], "cid": cid} for cid in sorted(leases)]
    insert = insert_into(dialect_of(session), LeasedPin)
    for start in range(0, len(rows), LISTED_AT_ONCE):
        some = rows[start : start + LISTED_AT_ONCE]
        session.execute(insert.values(some).on_conflict_do_nothing())


def forget(session: Session, job: uuid.UUID, cids: Collection[str]) -> None:
    """Unlist what is somebody's now, of a job without a reservation; with the last of it the lease
    ends."""
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
    """Bytes that count for a user since failures have left them on the node."""
    total = select(func.coalesce(func.sum(Lease.reserved_bytes), 0)).where(
        Lease.user_id == user_id, Lease.kind.in_((DEAD, LEFT))
    )
    return int(session.scalar(total) or 0)


def any_dead(session: Session) -> bool:
    """Whether there is anything to do: asked by reading alone, since on SQLite looking must not
    take the writer's place."""
    return bool(session.scalar(select(exists().where(Lease.lease_until <= database_now()))))


def some_listed(
    session: Session, limit: int, lease_id: uuid.UUID | None = None
) -> Sequence[Leftover]:
    """Up to `limit` pins that are listed, by one lease or any: one that has to wait is in nobody's
    way."""
    listed = (
        select(LeasedPin.lease_id, LeasedPin.cid, Lease.lease_until < database_now(-SETTLED))
        .join(Lease, Lease.id == LeasedPin.lease_id)
        .where(Lease.kind.in_((DEAD, LEFT)), Lease.lease_until <= database_now())
    )
    if lease_id is not None:
        listed = listed.where(LeasedPin.lease_id == lease_id)
    return [Leftover(*row) for row in session.execute(listed.order_by(func.random()).limit(limit))]


def claim(session: Session, cid: str, life: timedelta) -> Removal | None:
    """The right, for `life`, to unpin a content that on-api does not keep."""
    return contents.begin_removal(session, cid, grace=NEVER, life=life)


def whose(session: Session, leftover: Leftover, job: uuid.UUID) -> Whose:
    """What is to become of a listed pin that is named after `job`."""
    status = session.scalar(select(Pin.status).where(Pin.id == job))
    if status is None:
        return Whose.LEFT if job == leftover.lease_id else Whose.ANOTHERS
    return Whose.AWAITED if status in (QUEUED, PINNING) else Whose.LEFT


def is_kept(session: Session, cid: str) -> bool:
    """Whether a content's row tells of its pin, which then goes with it."""
    content = contents.lock(session, cid)
    if content is None or content.state != PINNED:
        return False
    if content.pin_root_id != cid:  # a bundle covers it: the node has pinned it as well
        content.pinned_too = True
    return True


def unlist(session: Session, leftover: Leftover) -> None:
    """A pin is gone, or somebody's."""
    session.execute(
        delete(LeasedPin).where(
            LeasedPin.lease_id == leftover.lease_id, LeasedPin.cid == leftover.cid
        )
    )


def to_be_swept(session: Session, limit: int) -> Sequence[uuid.UUID]:
    """Dead leases for whose name the node's pins are to be looked through."""
    dead = select(Lease.id).where(Lease.kind == DEAD, Lease.lease_until <= database_now())
    return session.scalars(dead.order_by(func.random()).limit(limit)).all()


def list_unknown(session: Session, pins: Mapping[str, uuid.UUID]) -> None:
    """List those pins (CID → dead lease of its name) that no content's row tells of."""
    # One that a bundle covers may not be known to have a pin of its own as well.
    tells = or_(Content.pin_root_id == Content.cid, Content.pinned_too)
    known = select(Content.cid).where(
        Content.cid.in_(pins),
        or_(Content.state == UNPINNING, and_(Content.state == PINNED, tells)),
    )
    unknown = set(pins) - set(session.scalars(known))
    there = set(session.scalars(select(Lease.id).where(Lease.id.in_(set(pins.values())))))
    _insert_listed(session, {cid: pins[cid] for cid in unknown if pins[cid] in there})


def mark_swept(session: Session, lease_ids: Collection[uuid.UUID], began_at: datetime) -> None:
    """Every pin of the node was looked at, from `began_at` on. Seen twice, `SETTLED` apart, all
    that there is of a lease is listed."""
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
    """Leases under which nothing is pinned any more."""
    listed = exists().where(LeasedPin.lease_id == Lease.id)
    return session.scalars(select(Lease.id).where(Lease.kind == LEFT, ~listed).limit(limit)).all()


def end_cleared(session: Session, lease_id: uuid.UUID) -> None:
    """Delete a lease and give back what it reserved, unless more was listed meanwhile."""
    user_id = session.scalar(select(Lease.user_id).where(Lease.id == lease_id))
    usage = None if user_id is None else usage_if_there(session, user_id)
    lease = session.get(Lease, lease_id, with_for_update=True, populate_existing=True)
    if lease is None or lease.kind != LEFT:
        return
    if not session.scalar(select(exists().where(LeasedPin.lease_id == lease_id))):
        end(session, usage, lease)


def end(session: Session, usage: UserUsage | None, lease: Lease) -> None:
    """Delete a lease and give back what it reserved; both are locked."""
    if usage is not None:
        reservations.release(session, usage, lease)
    session.delete(lease)
    session.flush()


def usage_if_there(session: Session, user_id: uuid.UUID) -> UserUsage | None:
    """A user's counters, locked; None for a user who is gone: there is nobody to give back to."""
    try:
        return contents.lock_usage(session, user_id)
    except Unauthorized:
        return None
