"""The outbox: events are written in the transaction of the change that they report, and numbered
later."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from on_api.core.models import Database, Event
from on_api.core.models.database import database_now, moment_of

MEMORY = timedelta(days=30)
"""Time for which an event is kept."""
BATCH_EVENTS = 1000

# One relay at a time on PostgreSQL; on SQLite the writer's turn does it.
_ADVISORY_LOCK = 0x6F6E6571


def record(
    session: Session, user_id: uuid.UUID, kind: str, subject_id: uuid.UUID, **data: Any
) -> None:
    """Record one event. `kind` reads like `pin.failed`; `data` must hold no secret."""
    session.add(Event(user_id=user_id, kind=kind, subject_id=subject_id, data=data))


def number_events(database: Database) -> int:
    """Number up to `BATCH_EVENTS` committed events by `seq`, in the order in which they were
    written.

    Returns how many. A reader by `seq` never finds a later event with an earlier number: an event
    that becomes visible late gets a later number. Numbers rise, with gaps.
    """
    with database.session_scope(write=False) as session:
        if session.scalar(select(Event.id).where(Event.seq.is_(None)).limit(1)) is None:
            return 0
    with database.session_scope() as session:
        if database.is_postgresql:
            session.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        last = session.scalar(select(func.max(Event.seq))) or 0
        # The newest event may have gone with its user's account; its number must not be reused. No
        # earlier number is higher than this microsecond.
        last = max(last, int(moment_of(session).timestamp() * 1_000_000))
        waiting = session.scalars(
            select(Event.id).where(Event.seq.is_(None)).order_by(Event.id).limit(BATCH_EVENTS)
        ).all()
        if waiting:
            numbered = [
                {"id": event_id, "seq": last + position}
                for position, event_id in enumerate(waiting, start=1)
            ]
            session.execute(update(Event), numbered)
        return len(waiting)


def forget_old_events(session: Session) -> None:
    """Delete events older than `MEMORY`, except the one with the highest number, from which the
    next one is derived."""
    newest = select(func.max(Event.seq)).scalar_subquery()
    session.execute(
        delete(Event).where(Event.created_at < database_now(-MEMORY), Event.seq < newest)
    )
