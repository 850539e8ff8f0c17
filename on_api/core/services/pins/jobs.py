"""Pins as jobs: claimed under a lease, renewed, finished or failed. The database half of the
worker.

Every change asks for the lease's token: a worker that has lost it changes nothing more. A pinned
pin is never claimed, so it stays pinned.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, literal_column, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, aliased

from on_api.core.errors import Unauthorized
from on_api.core.ipfs.port import DagStat
from on_api.core.models import Pin, UserUsage
from on_api.core.models.database import database_now, dialect_of, moment_of, new_id
from on_api.core.models.pin import DETAILS_LENGTH, FAILED, PINNING, QUEUED
from on_api.core.services.content import contents, leftovers, quota, recorder
from on_api.core.services.pins import pins
from on_api.core.services.pins.records import Fulfilled, mark_pinned
from on_api.core.services.shared import events, leased_jobs

UNDER_WAY = (QUEUED, PINNING)
# Written out as literals: only then does SQLite use the queue's index.
_IS_UNDER_WAY = Pin.status.in_([literal_column(f"'{status}'") for status in UNDER_WAY])
# Built once: an alias costs as much as the rest of the statement.
_other = aliased(Pin)
_IS_ANOTHER = and_(_other.cid == Pin.cid, _other.id != Pin.id)


@dataclass(frozen=True, slots=True)
class PinClaim:
    """Pin to be worked on by the holder of the token, with what the work needs to know.

    `attempts` counts this one; `details` are the last one's. `room`: bytes that the user's quota
    leaves; None: no limit. `ends_at`: when it is given up, by `time.monotonic()`. `known`: bytes of
    the DAG if on-api keeps it already; no removal begins while this pin waits.
    """

    id: uuid.UUID
    token: uuid.UUID
    user_id: uuid.UUID
    cid: str
    origins: tuple[str, ...]
    attempts: int
    ends_at: float
    removed: bool
    room: int | None
    details: str | None
    known: int | None

    @property
    def is_first(self) -> bool:
        """True if no earlier attempt can have touched the node's pin. An interrupted attempt is not
        counted, but has left its details."""
        return self.attempts == 1 and self.details is None


def next_user(
    session: Session, behind: uuid.UUID | None, served: Collection[uuid.UUID], *, fetch: bool
) -> uuid.UUID | None:
    """Return the next user with a pin that is due, in a fixed order, so that users take turns;
    users in `served` are skipped."""
    statement = select(Pin.user_id).where(_is_due(fetch=fetch)).order_by(Pin.user_id).limit(1)
    if behind is not None:
        statement = statement.where(Pin.user_id > behind)
    if served:
        statement = statement.where(Pin.user_id.not_in(served))
    return session.scalar(statement)


def next_due(session: Session, *, fetch: bool) -> float | None:
    """Return the seconds until the next pin is due; None while none waits."""
    return leased_jobs.next_due(session, Pin, _IS_UNDER_WAY, Pin.needs_fetch.is_(fetch))


def claim(
    session: Session, user_id: uuid.UUID, limit: int, life: timedelta, *, fetch: bool
) -> Sequence[PinClaim]:
    """Claim up to `limit` of a user's due pins, for `life`.

    `fetch`: claim pins whose blocks are known not to be all here, else the others. No two claims
    are on one CID at the same time.
    """
    found = session.execute(
        select(
            Pin.id,
            Pin.cid,
            Pin.origins,
            Pin.attempts,
            Pin.deadline_at,
            Pin.removed_at,
            Pin.details,
        )
        .where(Pin.user_id == user_id, _is_due(fetch=fetch))
        .order_by(Pin.due_at, Pin.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    rows = {row.cid: row for row in reversed(found)}  # the first of each CID
    for cid in _worked_on(session, rows):
        del rows[cid]
    taken = [row for row in found if rows.get(row.cid) is row]
    if not taken:
        return []
    token, freed = new_id(), _freed_by(session, user_id, [row.id for row in taken])
    changes: dict[str, Any] = {"lease_token": token, "lease_until": database_now(life)}
    session.execute(
        update(Pin)
        .where(Pin.id.in_([row.id for row in taken]))
        .values(**changes, attempts=Pin.attempts + 1, **({"status": PINNING} if fetch else {}))
        .execution_options(synchronize_session=False)
    )
    # Not locked: the exact room is checked at the end.
    usage = session.get(UserUsage, user_id)
    room = None if usage is None else quota.Room.of(usage).left
    known = contents.kept_sizes(session, rows)
    now, here = moment_of(session), time.monotonic()
    return [
        PinClaim(
            id=row.id,
            token=token,
            user_id=user_id,
            cid=row.cid,
            origins=tuple(row.origins),
            attempts=row.attempts + 1,
            ends_at=here + (row.deadline_at - now).total_seconds(),
            removed=row.removed_at is not None,
            room=None if room is None else max(room, 0) + freed.get(row.id, 0),
            details=row.details,
            known=known.get(row.cid),
        )
        for row in taken
    ]


def renew(
    session: Session, work: Mapping[uuid.UUID, tuple[uuid.UUID, DagStat | None]], life: timedelta
) -> set[uuid.UUID]:
    """Renew leases (pin → token) and record progress. Returns the pins whose work has to stop:
    removed, or claimed by another worker."""
    # In the common order of locking several.
    found = session.execute(
        select(Pin.id, Pin.lease_token, Pin.removed_at)
        .where(Pin.id.in_(work))
        .order_by(Pin.id)
        .with_for_update()
    )
    ours = [row for row in found if row.lease_token == work[row.id][0]]
    session.execute(
        update(Pin)
        .where(Pin.id.in_([row.id for row in ours]))
        .values(lease_until=database_now(life))
        .execution_options(synchronize_session=False)
    )
    for row in ours:
        if (stat := work[row.id][1]) is not None:
            session.execute(
                update(Pin)
                .where(Pin.id == row.id)
                .values(dag_size=stat.size, blocks=stat.blocks)
                .execution_options(synchronize_session=False)
            )
    return set(work) - {row.id for row in ours if row.removed_at is None}


def finish(session: Session, claim: PinClaim, stat: DagStat, secured: Mapping[str, int]) -> bool:
    """Record a reference for a pin that the node has pinned. Returns False when the claim was lost
    or the pin was removed: the node's pin is then a leftover.

    Raises `contents.NotSecuredError`, or `InsufficientFunds` over the quota.
    """
    usage = _lock_usage(session, claim)
    pin = leased_jobs.lock_claimed(session, Pin, claim.id, claim.token)
    if usage is None or pin is None:
        leftovers.leave(session, claim.id, [claim.cid])
        return False
    if pin.removed_at is not None:
        _end_removed(session, usage, pin)
        return False
    pins.lock_contents(session, pin)
    charged = usage.storage_bytes
    recorder.add_reference(session, usage, pin.cid, stat.size, secured)
    mark_pinned(session, usage, [Fulfilled(pin.id, pin.cid, stat.blocks or None)])
    pins.release_kept(session, usage, pin.id)
    # Checked after the content that it replaces is released.
    quota.require_kept(usage, charged)
    return True


def finish_all(
    session: Session, claims: Sequence[PinClaim], stats: Mapping[uuid.UUID, DagStat]
) -> set[uuid.UUID]:
    """Record references for several pins, as `finish` does. Returns the ids of those recorded.

    `claims` are one user's, each of another CID; `stats` by pin. Pins that were lost or removed,
    that replace others, or whose content can't be relied on are left out: `finish` decides on them.
    Raises `InsufficientFunds` when all together exceed the quota.
    """
    usage = _lock_usage(session, claims[0])
    if usage is None:
        return set()
    fit = _lock_ordinary(session, claims)
    locked = recorder.lock_contents(
        session,
        {claim.cid: stats[claim.id].size for claim in fit},
        own_pins={claim.cid for claim in fit if claim.known is None or not claim.is_first},
    )
    fit = [claim for claim in fit if claim.cid in locked.sizes]
    if not fit:
        return set()
    charged = usage.storage_bytes
    references = Counter((claim.user_id, claim.cid) for claim in fit)
    recorder.add_references(session, {usage.user_id: usage}, references, locked)
    quota.require_kept(usage, charged)
    fulfilled = [Fulfilled(each.id, each.cid, stats[each.id].blocks or None) for each in fit]
    mark_pinned(session, usage, fulfilled)
    return {claim.id for claim in fit}


def _lock_ordinary(session: Session, claims: Sequence[PinClaim]) -> list[PinClaim]:
    """Lock those claims that are still ours, in the common order. Returns those that neither were
    removed nor replace another pin."""
    ids = [claim.id for claim in claims]
    found = session.execute(
        select(Pin.id, Pin.lease_token)
        .where(Pin.id.in_(ids), Pin.removed_at.is_(None))
        .order_by(Pin.id)
        .with_for_update()
    )
    token_of = dict(found.all())
    replacing = set(session.scalars(select(Pin.kept_for).where(Pin.kept_for.in_(ids))))
    return [
        claim
        for claim in claims
        if token_of.get(claim.id) == claim.token and claim.id not in replacing
    ]


def fail(session: Session, claim: PinClaim, details: str) -> bool:
    """Fail a pin for good, with the reason. Returns False when the claim was lost or the pin was
    removed."""
    usage = _lock_usage(session, claim)
    pin = leased_jobs.lock_claimed(session, Pin, claim.id, claim.token)
    if usage is None or pin is None:
        leftovers.leave(session, claim.id, [claim.cid])
        return False
    if pin.removed_at is not None:
        _end_removed(session, usage, pin)
        return False
    pins.release_kept(session, usage, pin.id)
    leftovers.leave(session, pin.id, [pin.cid])
    pin.status, pin.details = FAILED, details[:DETAILS_LENGTH]
    pin.release()
    events.record(session, pin.user_id, "pin.failed", pin.id, cid=pin.cid, details=pin.details)
    return True


def put_back(
    session: Session,
    claim: PinClaim,
    *,
    due_in: timedelta = timedelta(0),
    details: str | None = None,
    needs_fetch: bool = False,
    counted: bool = True,
) -> None:
    """Return a pin to the queue; a lost claim changes nothing. `counted=False`: without counting
    the attempt."""
    usage = _lock_usage(session, claim)
    pin = leased_jobs.lock_claimed(session, Pin, claim.id, claim.token)
    if usage is None or pin is None:
        leftovers.leave(session, claim.id, [claim.cid])
        return
    if pin.removed_at is not None:
        _end_removed(session, usage, pin)
        return
    leased_jobs.put_back(pin, due_in=due_in, counted=counted)
    pin.status = QUEUED
    pin.needs_fetch = pin.needs_fetch or needs_fetch
    pin.details = None if details is None else details[:DETAILS_LENGTH]


def queue_length(session: Session, *, fetch: bool | None = None) -> int:
    """Return the number of pins that wait or are worked on, counted up to `MOST_COUNTED` of
    `leased_jobs`; with `fetch` only those that are known to need a fetch, or not to."""
    of_lane = () if fetch is None else (Pin.needs_fetch.is_(fetch),)
    return leased_jobs.queue_length(session, Pin, _IS_UNDER_WAY, *of_lane)


def _is_due(*, fetch: bool) -> ColumnElement[bool]:
    """Return the SQL condition that a pin is due and that no worker has claimed it or another pin
    of the same CID."""
    return and_(
        _IS_UNDER_WAY,
        Pin.needs_fetch.is_(fetch),
        leased_jobs.is_due(Pin),
        ~exists().where(_IS_ANOTHER, _other.lease_until > database_now()),
    )


def _worked_on(session: Session, cids: Collection[str]) -> Sequence[str]:
    """Return those of `cids` of which another pin has been claimed since theirs were found to be
    due.

    On PostgreSQL two simultaneous claims don't see each other: the second finds the advisory lock
    that the first holds until it has committed. On SQLite there is one writer.
    """
    if dialect_of(session) != "postgresql" or not cids:
        return ()
    each = func.unnest(postgresql.array(cids)).column_valued("each")
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(each, 0))
    got = dict(session.execute(select(each, lock)).all())
    leased = session.scalars(
        select(Pin.cid).where(Pin.cid.in_(cids), Pin.lease_until > database_now())
    )
    return list({cid for cid in cids if not got[cid]}.union(leased))


def _freed_by(
    session: Session, user_id: uuid.UUID, pin_ids: Collection[uuid.UUID]
) -> Mapping[uuid.UUID, int]:
    """Return, by pin, the bytes that its user would be charged less once it replaces the content
    kept for it."""
    kept: defaultdict[uuid.UUID, list[str]] = defaultdict(list)
    waiting = select(Pin.kept_for, Pin.cid).where(Pin.kept_for.in_(pin_ids))
    for pin_id, cid in session.execute(waiting):
        if pin_id is not None:  # never, except by the column's type
            kept[pin_id].append(cid)
    return {pin_id: quota.freed_by(session, user_id, cids) for pin_id, cids in kept.items()}


def _end_removed(session: Session, usage: UserUsage, pin: Pin) -> None:
    pins.release_kept(session, usage, pin.id)
    leftovers.leave(session, pin.id, [pin.cid])
    session.delete(pin)
    session.flush()


def _lock_usage(session: Session, claim: PinClaim) -> UserUsage | None:
    try:
        return contents.lock_usage(session, claim.user_id)
    except Unauthorized:  # deleted meanwhile, and its pins with it
        return None
