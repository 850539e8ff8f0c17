"""Whoever sleeps is woken by work that is committed, in this process and in another one; and by
nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from on_api.core.models import Database, PasswordThrottle
from on_api.core.models.database import utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.shared.wakeup import Sleeper, Wakeup
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.testing.deadline import until

LONG = 60.0
"""Seconds: no test waits for its end."""


@pytest.fixture
def settings(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Settings:
    """Of a database of one's own."""
    return settings_for(new_database())


def leave_work(database: Database, wakeup: Wakeup) -> None:
    """Commit something that a worker is to find."""
    with database.session_scope() as session:
        row = PasswordThrottle(subject="x", network="y", failures=1, updated_at=utc_now())
        session.merge(row)
        wakeup.wake_after(session)


def test_what_wakes_during_a_look_is_not_lost() -> None:
    """It comes after the look began, and before the sleep."""

    async def look_and_sleep() -> None:
        sleeper = Sleeper(asyncio.get_running_loop())
        sleeper.begin()
        sleeper.wake()
        async with asyncio.timeout(15):
            await sleeper.sleep(LONG)

    asyncio.run(look_and_sleep())


def test_what_woke_before_the_look_counts_no_more() -> None:
    """It was for what the look finds."""

    async def look_and_sleep() -> bool:
        sleeper = Sleeper(asyncio.get_running_loop())
        sleeper.wake()
        await asyncio.sleep(0)  # the loop has heard it
        sleeper.begin()
        sleep = asyncio.ensure_future(sleeper.sleep(LONG))
        done, _ = await asyncio.wait([sleep], timeout=0.05)
        sleep.cancel()
        return bool(done)

    assert not asyncio.run(look_and_sleep())


def test_woken_by_a_commit_in_this_process(settings: Settings) -> None:
    """By the commit, not before it, and not by one that fails."""
    database = Database(settings)
    wakeup = Wakeup(Invalidations(database))

    async def sleep() -> None:
        sleeper = Sleeper(asyncio.get_running_loop())
        wakeup.add(sleeper)
        sleeper.begin()
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(fail)
        sleeping = asyncio.ensure_future(sleeper.sleep(LONG))
        await asyncio.wait([sleeping], timeout=0.05)
        assert not sleeping.done()
        await asyncio.to_thread(leave_work, database, wakeup)
        async with asyncio.timeout(15):
            await sleeping
        wakeup.remove(sleeper)

    def fail() -> None:
        with database.session_scope() as session:
            wakeup.wake_after(session)
            raise RuntimeError

    asyncio.run(sleep())
    database.dispose()


def test_woken_by_a_process_without_a_worker(settings: Settings) -> None:
    """Of which a worker in another process hears through the database."""
    database, elsewhere = Database(settings), Database(settings)
    invalidations = Invalidations(database)
    wakeup = Wakeup(invalidations)
    invalidations.start()
    until(lambda: invalidations.trusted, "it listens")
    is_asleep, is_awake = threading.Event(), threading.Event()

    async def sleep() -> None:
        sleeper = Sleeper(asyncio.get_running_loop())
        wakeup.add(sleeper)
        sleeper.begin()
        is_asleep.set()
        await sleeper.sleep(LONG)
        is_awake.set()

    thread = threading.Thread(target=lambda: asyncio.run(sleep()), daemon=True)
    thread.start()
    assert is_asleep.wait(15)
    leave_work(elsewhere, Wakeup(Invalidations(elsewhere)))
    assert is_awake.wait(15)
    thread.join()
    invalidations.stop()
    database.dispose()
    elsewhere.dispose()
