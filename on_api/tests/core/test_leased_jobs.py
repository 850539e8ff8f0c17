"""When the worker is to look again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from on_api.core.models import Database, Pin, User, UserUsage
from on_api.core.models.database import database_now, new_id, utc_now
from on_api.core.services.pins import jobs
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker


def _pin(user: User, cid: str, due_in: timedelta) -> Pin:
    return Pin(
        id=new_id(),
        user_id=user.id,
        cid=cid,
        source_cid=cid,
        origins=[],
        status="queued",
        created_at=utc_now() + due_in,
        due_at=database_now(due_in),
        deadline_at=utc_now(),
        attempts=0,
        needs_fetch=False,
    )


def test_when_the_next_job_is_due(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """At once for what has become due while somebody looked; not for what is worked on."""
    database = Database(settings_for(new_database()))

    def next_due(session: Session) -> float | None:
        session.flush()
        return jobs.next_due(session, fetch=False)

    with database.session_scope() as session:
        user = User(id=new_id(), username="ada", is_admin=False, active=True)
        user.usage = UserUsage(file_count=0, storage_bytes=0, reserved_bytes=0)
        session.add(user)
        assert next_due(session) is None
        session.add(_pin(user, "later", timedelta(hours=1)))
        due = next_due(session)
        assert due is not None
        assert 3500 < due <= 3600
        session.add(now := _pin(user, "now", timedelta(seconds=-1)))
        due = next_due(session)
        assert due is not None
        assert due < 0
        leased = update(Pin).where(Pin.id == now.id)
        session.execute(leased.values(lease_until=database_now(timedelta(minutes=1))))
        due = next_due(session)
        assert due is not None
        assert due > 3500
    database.dispose()
