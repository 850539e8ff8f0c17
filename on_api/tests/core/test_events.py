"""The outbox: each event is told once, in one order, to whoever reads by number."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from on_api.core.models import Database, Event, User
from on_api.core.models.database import new_id, utc_now
from on_api.core.services.shared.events import MEMORY, forget_old_events, number_events, record
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker

WRITERS, EACH = 6, 15


@pytest.fixture
def database(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], tmp_path: Path
) -> Iterator[Database]:
    """One of one's own."""
    made = Database(settings_for(new_database()))
    yield made
    made.dispose()


def new_user(database: Database) -> uuid.UUID:
    """Somebody to whom things happen."""
    with database.session_scope() as session:
        user = User(id=new_id(), username=f"user-{new_id()}", password_hash="", is_admin=False)
        session.add(user)
    return user.id


def write(database: Database, user_id: uuid.UUID) -> uuid.UUID:
    """One event."""
    subject = new_id()
    with database.session_scope() as session:
        record(session, user_id, "test.happened", subject)
    return subject


def read(database: Database, behind: int) -> list[tuple[int, uuid.UUID]]:
    """As webhooks and streams read: by number, from the last one seen."""
    with database.session_scope(write=False) as session:
        events = session.scalars(select(Event).where(Event.seq > behind).order_by(Event.seq))
        return [(event.seq or 0, event.subject_id) for event in events]


def test_writers_relays_and_a_reader_at_once(database: Database) -> None:
    """Transactions that end in another order than they began, two relays, one reader who never
    looks back: nothing is missed, nothing is told twice, each writer's own order is kept."""
    user_id = new_user(database)
    written, numbered = threading.Event(), threading.Event()
    seen: list[uuid.UUID] = []

    def write_some() -> list[uuid.UUID]:
        subjects = []
        for _ in range(EACH):
            subjects.append(new_id())
            with database.session_scope() as session:
                record(session, user_id, "test.happened", subjects[-1])
                session.flush()
                if database.is_postgresql:
                    time.sleep(random.uniform(0, 0.01))  # the order of ends is the thing under test
        return subjects

    def relay() -> None:
        while not written.is_set():
            number_events(database)
        number_events(database)

    def follow() -> None:
        last = 0
        is_last_look = False
        while not is_last_look:
            is_last_look = numbered.is_set()
            for number, subject in read(database, last):
                seen.append(subject)
                last = number

    with ThreadPoolExecutor() as pool:
        relays = [pool.submit(relay), pool.submit(relay)]
        follower = pool.submit(follow)
        writers = [pool.submit(write_some) for _ in range(WRITERS)]
        by_writer = [writer.result() for writer in writers]
        written.set()
        for each in relays:
            each.result()
        numbered.set()
        follower.result()
    assert sorted(seen, key=str) == sorted((s for own in by_writer for s in own), key=str)
    for own in by_writer:
        assert [subject for subject in seen if subject in set(own)] == own


def test_numbers_do_not_come_again(database: Database) -> None:
    """Not even when the newest events went with their user's account."""
    ada, ben = new_user(database), new_user(database)
    write(database, ben)
    write(database, ada)
    assert number_events(database) == 2
    last = read(database, 0)[-1][0]
    with database.session_scope() as session:
        session.delete(session.get_one(User, ada))
    subject = write(database, ben)
    assert number_events(database) == 1
    assert [found for _, found in read(database, last)] == [subject]


def test_old_events_are_forgotten(database: Database) -> None:
    """After their time, but for the newest."""
    user_id = new_user(database)
    subjects = [write(database, user_id) for _ in range(3)]
    number_events(database)
    unnumbered = write(database, user_id)
    with database.session_scope() as session:
        session.execute(update(Event).values(created_at=utc_now() - MEMORY - timedelta(days=1)))
        forget_old_events(session)
        left = session.scalars(select(Event.subject_id).order_by(Event.id)).all()
    assert left == [subjects[-1], unnumbered]
