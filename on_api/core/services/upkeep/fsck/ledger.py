"""The database checked against itself: references, holdings, counters, states, leases.

Each check is one statement over the whole table that returns only what is wrong; each finding is
checked again, under lock, before it is repaired.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.models import Content, Database, File, Holding, Lease, LeasedPin, Pin, UserUsage
from on_api.core.models.content import PINNED
from on_api.core.models.database import database_now, moment_of
from on_api.core.models.pin import PINNED_STATUS
from on_api.core.services.content import bundles, contents, leftovers
from on_api.core.services.pins.jobs import UNDER_WAY
from on_api.core.services.upkeep.fsck.findings import Finding, FindingKind

SLACK = timedelta(minutes=5)
"""Time after its end until a lease counts as dead."""


def check_ledger(database: Database, *, repair: bool) -> Iterator[Finding]:
    """Yield all findings. References come first: later counts depend on them."""
    yield from _check_holdings(database, repair=repair)
    yield from _check_counters(database, repair=repair)
    yield from _check_stamps(database, repair=repair)
    yield from _check_leases(database, repair=repair)


def _check_holdings(database: Database, *, repair: bool) -> Iterator[Finding]:
    """Check that a holding counts exactly the files and pins that refer to its content."""
    references = _references()
    counted = func.coalesce(references.c.count, 0)
    too_many = (
        select(Holding.user_id, Holding.cid)
        .outerjoin(
            references,
            and_(references.c.user_id == Holding.user_id, references.c.cid == Holding.cid),
        )
        .where(Holding.references != counted)
    )
    none = select(references.c.user_id, references.c.cid).where(
        ~exists().where(Holding.user_id == references.c.user_id, Holding.cid == references.c.cid)
    )
    with database.session_scope(write=False) as session:
        found = [*session.execute(too_many).all(), *session.execute(none).all()]
    for user_id, cid in found:
        with database.session_scope(write=repair) as session:
            finding = _look_at_holding(session, user_id, cid, repair=repair)
        if finding is not None:
            yield finding


def _look_at_holding(
    session: Session, user_id: uuid.UUID, cid: str, *, repair: bool
) -> Finding | None:
    usage = contents.lock_usage(session, user_id) if repair else session.get_one(UserUsage, user_id)
    content = contents.lock(session, cid) if repair else session.get(Content, cid)
    holding = session.get(Holding, (user_id, cid), populate_existing=True)
    is_this = and_(Pin.user_id == user_id, Pin.cid == cid, Pin.status == PINNED_STATUS)
    real = (
        session.scalar(select(func.count()).where(File.user_id == user_id, File.cid == cid)) or 0
    ) + (session.scalar(select(func.count()).where(is_this)) or 0)
    counted = 0 if holding is None else holding.references
    if real == counted:
        return None
    if repair:
        if holding is None:
            size = 0 if content is None else content.dag_size
            session.add(Holding(user_id=user_id, cid=cid, references=real, bytes=size))
            usage.storage_bytes += size
        elif real == 0:
            usage.storage_bytes -= holding.bytes
            session.delete(holding)
        else:
            holding.references = real
    details = f"user {user_id} has {real} references to it, but {counted} are recorded"
    return Finding(FindingKind.WRONG_COUNT, cid, details, mended=repair)


def _check_counters(database: Database, *, repair: bool) -> Iterator[Finding]:
    """Check that a user's counters equal the sums of what they count."""
    sums = {
        UserUsage.storage_bytes: _sum(func.sum(Holding.bytes), Holding.user_id),
        UserUsage.reserved_bytes: _sum(func.sum(Lease.reserved_bytes), Lease.user_id),
        UserUsage.file_count: _sum(func.count(File.id), File.user_id),
        UserUsage.pinned_count: _sum(
            func.count(Pin.id),
            Pin.user_id,
            Pin.status == PINNED_STATUS,
            Pin.removed_at.is_(None),
        ),
    }
    wrong = select(UserUsage.user_id).where(
        or_(*(column != total for column, total in sums.items()))
    )
    with database.session_scope(write=False) as session:
        found = session.scalars(wrong).all()
    for user_id in found:
        with database.session_scope(write=repair) as session:
            if repair:
                contents.lock_usage(session, user_id)
            usage = session.get_one(UserUsage, user_id, populate_existing=True)
            for column, total in sums.items():
                real = int(session.scalar(select(total).where(UserUsage.user_id == user_id)) or 0)
                counted = getattr(usage, column.key)
                if real != counted:
                    if repair:
                        setattr(usage, column.key, real)
                    details = f"{column.key} is recorded as {counted}, but should be {real}"
                    yield Finding(FindingKind.WRONG_COUNT, str(user_id), details, mended=repair)


def _check_stamps(database: Database, *, repair: bool) -> Iterator[Finding]:
    """Check that `unreferenced_at` is set exactly on contents that are not held: else they are
    never freed, or too soon."""
    held = bundles.is_held(Content.cid)
    wrong = select(Content.cid).where(
        Content.state == PINNED,
        or_(
            and_(~held, Content.unreferenced_at.is_(None)),
            and_(held, Content.unreferenced_at.is_not(None)),
        ),
    )
    with database.session_scope(write=False) as session:
        found = session.scalars(wrong).all()
    for cid in found:
        with database.session_scope(write=repair) as session:
            content = contents.lock(session, cid) if repair else session.get(Content, cid)
            is_held = session.scalar(select(bundles.is_held(cid)))
            if content is None or is_held == (content.unreferenced_at is None):
                continue
            if repair:
                content.unreferenced_at = None if is_held else database_now()
            details = "the content is in use" if is_held else "the content is not in use"
            yield Finding(
                FindingKind.WRONG_STATE,
                cid,
                f"{details}, but its row says otherwise",
                mended=repair,
            )


def _check_leases(database: Database, *, repair: bool) -> Iterator[Finding]:
    """Check for leases left by crashes; their pins are found by `checks.py`, before the leases
    go."""
    ended = database_now(-SLACK)
    with database.session_scope(write=False) as session:
        uploads = session.execute(
            select(Lease.id, Lease.user_id).where(Lease.lease_until < ended)
        ).all()
        jobs = session.scalars(
            select(Pin.id).where(Pin.status.in_(UNDER_WAY), Pin.lease_until < ended)
        ).all()
    for lease_id, user_id in uploads:
        with database.session_scope(write=repair) as session:
            finding = _look_at_lease(session, lease_id, user_id, repair=repair)
        if finding is not None:
            yield finding
    for pin_id in jobs:
        # The next worker continues it: nothing to repair, only to report.
        yield Finding(
            FindingKind.DEAD_LEASE,
            str(pin_id),
            "the worker of this pin has ended; is a worker running?",
        )


def _look_at_lease(
    session: Session, lease_id: uuid.UUID, user_id: uuid.UUID | None, *, repair: bool
) -> Finding | None:
    usage = None
    if repair and user_id is not None:
        usage = leftovers.usage_if_there(session, user_id)
    lease = session.get(Lease, lease_id, with_for_update=repair)
    if lease is None or lease.lease_until >= moment_of(session) - SLACK:  # it lives again
        return None
    if session.scalar(select(exists().where(LeasedPin.lease_id == lease_id))):
        # Only the lease lists these pins.
        details = "the worker has not removed its leftover pins yet; is a worker running?"
        return Finding(FindingKind.DEAD_LEASE, str(lease_id), details)
    if repair:
        leftovers.end(session, usage, lease)
    return Finding(
        FindingKind.DEAD_LEASE,
        str(lease_id),
        "an upload that ended without being cleaned up",
        mended=repair,
    )


def _references() -> Subquery:
    """Count the references of each user to each content."""
    everything = union_all(
        select(File.user_id, File.cid),
        select(Pin.user_id, Pin.cid).where(Pin.status == PINNED_STATUS),
    ).subquery()
    return (
        select(everything.c.user_id, everything.c.cid, func.count(literal(1)).label("count"))
        .group_by(everything.c.user_id, everything.c.cid)
        .subquery()
    )


def _sum(
    total: ColumnElement[int], owner: InstrumentedAttribute[Any], *where: ColumnElement[bool]
) -> ColumnElement[int]:
    statement: Select[int] = select(func.coalesce(total, 0)).where(
        owner == UserUsage.user_id, *where
    )
    return statement.scalar_subquery()
