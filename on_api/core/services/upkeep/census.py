"""The census: counts of all that is kept, taken now and then by one process for all.

Counting a million rows takes a good part of a second. So no request and no scrape counts: the
housekeeper does, at most a hundredth of the time, and leaves the counts in the database.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Float, and_, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from on_api.core.errors import Conflict
from on_api.core.models import Content, Database, EgressCounter, Pin, User, UserUsage
from on_api.core.models.content import ABSENT, PINNED, UNPINNING
from on_api.core.models.database import moment_of
from on_api.core.models.pin import FAILED, PINNED_STATUS, PINNING, QUEUED
from on_api.core.models.traffic import OWNER
from on_api.core.services.content import maintenance
from on_api.core.services.content.maintenance import CENSUS, Turn

LEAST_PAUSE = timedelta(seconds=60)
RESTS = 100
"""The pause after a census, as a multiple of the time that it took."""
COUNTED = "counted"
MOST_SHOWN = 10
"""Users who are named: those who have used the largest share of their quota, or of their budget."""


def take_census_when_due(database: Database) -> bool:
    """Count if the last counts are old enough. Returns whether it has counted.

    Raises an `OnApiError` when the database can't be asked, or gives up counting; then the next
    census comes later.
    """
    with database.session_scope(write=False) as session:
        if not _is_due(session):
            return False
    try:
        turn = Turn(database, CENSUS)
    except Conflict:  # another process has just begun
        return False
    began = time.monotonic()
    counted: dict[str, Any] = {"outcome": "failed"}
    try:
        with database.session_scope(write=False) as session:
            counted = {"outcome": COUNTED, **count(session)}
    finally:
        turn.end(counted | {"seconds": round(time.monotonic() - began, 3)})
    return True


def count(session: Session) -> dict[str, Any]:
    """Count contents and pins by their states, files, bytes and users; and name the users who have
    used most of their quota or budget, by their ids, with the share."""
    files, stored_bytes, users = session.execute(
        select(
            func.coalesce(func.sum(UserUsage.file_count), 0),
            func.coalesce(func.sum(UserUsage.storage_bytes), 0),
            func.count(),
        )
    ).one()
    used = UserUsage.storage_bytes + UserUsage.reserved_bytes
    month = moment_of(session).strftime("%Y-%m")
    spent = and_(
        EgressCounter.subject_kind == OWNER,
        EgressCounter.subject_id == User.id,
        EgressCounter.month == month,
    )
    return {
        "contents": _by(session, Content.state, (PINNED, UNPINNING, ABSENT)),
        "pins": _by(session, Pin.status, (QUEUED, PINNING, PINNED_STATUS, FAILED)),
        "files": int(files),
        "stored_bytes": int(stored_bytes),
        "users": int(users),
        "quotas": _largest_shares(
            session, UserUsage, UserUsage.user_id == User.id, used, User.storage_quota
        ),
        "budgets": _largest_shares(
            session, EgressCounter, spent, EgressCounter.bytes, User.egress_budget
        ),
    }


def _is_due(session: Session) -> bool:
    last = maintenance.last_outcome(session, CENSUS)
    if last.finished_at is None or last.result is None:
        return True
    pause = max(LEAST_PAUSE, timedelta(seconds=RESTS * float(last.result["seconds"])))
    return moment_of(session) - last.finished_at >= pause


def _by(
    session: Session, column: InstrumentedAttribute[str], values: Sequence[str]
) -> dict[str, int]:
    found = session.execute(select(column, func.count()).group_by(column))
    return dict.fromkeys(values, 0) | {state: int(number) for state, number in found}


def _largest_shares(
    session: Session,
    counter: type[UserUsage] | type[EgressCounter],
    of_user: ColumnElement[bool],
    used: ColumnElement[int] | InstrumentedAttribute[int],
    limit: InstrumentedAttribute[int | None],
) -> Sequence[tuple[str, float]]:
    """Return the ids of the users with the largest shares, with the share. A limit of 0, which
    forbids all, is left out: there is nothing to use up."""
    share = (cast(used, Float) / limit).label("share")
    found = session.execute(
        select(User.id, share)
        .join(counter, of_user)
        .where(limit > 0, User.deleted_at.is_(None))
        .order_by(share.desc(), User.id)
        .limit(MOST_SHOWN)
    )
    return [(str(user_id), round(float(part), 4)) for user_id, part in found]
