"""SQLite's writers: one after the other, in the order of coming, however many there are."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from on_api.core.errors import DatabaseUnavailable
from on_api.core.models import Database
from on_api.core.models.writers_queue import WritersQueue
from on_api.core.server_settings import DatabaseSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.testing.deadline import until


def test_in_the_order_of_coming() -> None:
    """Also when the turn of the first takes long; who gives up is passed over."""
    queue = WritersQueue()
    assert queue.enter(0)
    order: list[int] = []

    def wait(number: int, seconds: float) -> bool:
        came = queue.enter(seconds)
        if came:
            order.append(number)
            queue.leave()
        return came

    with ThreadPoolExecutor(6) as threads:
        coming = []
        for number in range(6):
            coming.append(threads.submit(wait, number, 0.3 if number == 2 else 30))
            until(lambda n=number: queue.waiting == n + 1, "it waits")  # type: ignore[misc]
        assert coming[2].result() is False
        queue.leave()
    assert order == [0, 1, 3, 4, 5]
    assert queue.enter(0)


@pytest.fixture
def busy(
    sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> Callable[[float], Database]:
    """A database whose writers wait no longer than so many seconds."""

    def make(seconds: float) -> Database:
        return Database(
            settings_for(sqlite_database(), database=DatabaseSettings(lock_timeout=seconds))
        )

    return make


CHANGE = "UPDATE users SET active = active"


def write(database: Database, *statements: str) -> None:
    """A transaction that changes something, and does what else is wanted."""
    with database.session_scope() as session:
        for statement in (CHANGE, *statements):
            session.execute(text(statement))


def test_nobody_starves(busy: Callable[[float], Database]) -> None:
    """Each of many waits for those before it, not for its luck in trying again."""
    database = busy(60)
    coming, going = itertools.count(), itertools.count()

    def slow_write() -> int:
        came = next(coming)
        with database.session_scope() as session:
            session.execute(text(CHANGE))
            time.sleep(0.01)  # what a commit takes on a common disk
            return next(going) - came

    # There are never more than 39 others; some pass while a thread is on its way into the queue.
    with ThreadPoolExecutor(40) as threads:
        passed_by = [done.result() for done in [threads.submit(slow_write) for _ in range(400)]]
    assert max(passed_by) < 120
    assert database.writers_waiting() == 0
    database.dispose()


def test_a_turn_ends_with_its_transaction(busy: Callable[[float], Database]) -> None:
    """Also of one that fails; who has waited too long is told; readers wait for nobody."""
    database = busy(0.2)
    with pytest.raises(DatabaseUnavailable):
        write(database, "UPDATE nothing")
    write(database)
    holds, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with database.session_scope() as session:
            session.execute(text(CHANGE))
            holds.set()
            go_on.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    assert holds.wait(10)
    with pytest.raises(DatabaseUnavailable):
        write(database)
    with database.session_scope(write=False) as session:
        assert session.scalar(text("SELECT count(*) FROM users")) == 0
    go_on.set()
    holding.join()
    write(database)
    database.dispose()
