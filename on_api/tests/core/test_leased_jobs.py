"""When the worker is to look again."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from on_api.core.models import Database, Pin
from on_api.core.models.database import database_now
from on_api.core.services.pins import jobs
from on_api.tests.testing.rows import pin_row, user_row


def test_when_the_next_job_is_due(database: Database) -> None:
    """At once for what has become due while somebody looked; not for what is worked on."""

    def next_due(session: Session) -> float | None:
        session.flush()
        return jobs.next_due(session, fetch=False)

    with database.session_scope() as session:
        session.add(user := user_row("ada"))
        assert next_due(session) is None
        session.add(pin_row(user.id, "later", due_at=database_now(timedelta(hours=1))))
        due = next_due(session)
        assert due is not None
        assert 3500 < due <= 3600
        before = database_now(timedelta(seconds=-1))
        session.add(now := pin_row(user.id, "now", due_at=before, created_at=before))
        due = next_due(session)
        assert due is not None
        assert due < 0
        leased = update(Pin).where(Pin.id == now.id)
        session.execute(leased.values(lease_until=database_now(timedelta(minutes=1))))
        due = next_due(session)
        assert due is not None
        assert due > 3500
