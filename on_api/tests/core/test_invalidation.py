"""What changes is heard: here at commit, elsewhere within a second, and silence is never
trusted."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from on_api.core.models import Database, PasswordThrottle, invalidation
from on_api.core.models.database import utc_now
from on_api.core.models.invalidation import Invalidations
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.testing.deadline import until
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

FD_SETSIZE = 1024
"""From this number on `select` refuses descriptors."""


class Heard:
    """Counts what is told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@contextmanager
def listening(settings: Settings) -> Iterator[tuple[Database, Invalidations, Heard]]:
    """A process of its own, as far as the database can tell."""
    database = Database(settings)
    invalidations, heard = Invalidations(database), Heard()
    invalidations.subscribe(heard)
    invalidations.start()
    try:
        until(lambda: invalidations.trusted, "it listens")
        yield database, invalidations, heard
    finally:
        invalidations.stop()
        database.dispose()


@pytest.fixture
def settings(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Settings:
    """Of a database of one's own."""
    return settings_for(new_database())


def change(database: Database, invalidations: Invalidations) -> None:
    """Something that must be heard."""
    with database.session_scope() as session:
        row = PasswordThrottle(subject="x", network="y", failures=1, updated_at=utc_now())
        session.merge(row)
        invalidations.announce(session)


def test_heard_at_commit_in_this_process_and_not_on_rollback(settings: Settings) -> None:
    """At once after the commit, not before, not without."""
    database = Database(settings)
    invalidations, heard = Invalidations(database), Heard()
    invalidations.subscribe(heard)
    assert not invalidations.trusted
    with database.session_scope() as session:
        invalidations.announce(session)
        assert heard.times == 0
    assert heard.times == 1

    def announce_and_fail() -> None:
        with database.session_scope() as session:
            invalidations.announce(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        announce_and_fail()
    assert heard.times == 1
    database.dispose()


def test_heard_in_other_processes(settings: Settings) -> None:
    """Within a second of the commit."""
    with listening(settings) as (_, _, heard), listening(settings) as (other, news, _):
        before = heard.times
        change(other, news)
        until(lambda: heard.times > before, "the other one hears")


def test_heard_by_a_process_with_very_many_connections(settings: Settings) -> None:
    """Whose descriptors are higher than `select` takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FD_SETSIZE + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"no process may have {wanted} descriptors here")
    with ExitStack() as stack:
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        highest = -1
        while highest < FD_SETSIZE:
            highest = stack.enter_context(open(os.devnull, "rb")).fileno()
        _, _, heard = stack.enter_context(listening(settings))
        writer, writers_news, _ = stack.enter_context(listening(settings))
        before = heard.times
        change(writer, writers_news)
        until(lambda: heard.times > before, "it is heard")


def test_what_can_not_be_heard_is_not_trusted(settings: Settings) -> None:
    """PostgreSQL: the listener's connection is cut. It distrusts, comes back, and forgets
    everything."""
    if not settings.sqlalchemy_url.startswith("postgresql"):
        pytest.skip("SQLite is read from its file: there is no connection to lose")
    with listening(settings) as (database, invalidations, heard):
        before = heard.times
        with database.session_scope() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
                )
            )
        until(lambda: not invalidations.trusted, "it distrusts")
        until(lambda: invalidations.trusted, "it listens again")
        assert heard.times > before
        again = heard.times
        change(database, invalidations)
        until(lambda: heard.times > again, "it hears again")


@pytest.fixture
def distant(
    postgres_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> Iterator[tuple[Settings, TcpProxy]]:
    """A database of one's own, behind a network that can be told to misbehave."""
    url = make_url(postgres_database())
    path = f"{url.query['host']}/.s.PGSQL.{url.port or 5432}"

    def dial() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(path)
        return server

    with proxied(dial) as proxy:
        there = url.set(host="127.0.0.1", port=proxy.port, query={})
        yield settings_for(there.render_as_string(hide_password=False)), proxy


def test_a_listener_that_falls_silent_is_not_trusted(
    distant: tuple[Settings, TcpProxy], caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection stays open, and nothing comes any more. It takes another one, forgets what it
    holds, and says so once."""
    settings, proxy = distant
    with listening(settings) as (database, invalidations, heard):
        before = heard.times
        proxy.mute_listeners()
        until(lambda: not invalidations.trusted, "it distrusts")
        until(lambda: invalidations.trusted, "it listens again")
        assert heard.times > before
        again = heard.times
        change(database, invalidations)
        until(lambda: heard.times > again, "it hears again")
    said = [record.message for record in caplog.records if "other processes" in record.message]
    assert len(said) == 2
    assert "lost" in said[0]
    assert "again" in said[1]


def test_a_network_that_swallows_everything(
    distant: tuple[Settings, TcpProxy], caplog: pytest.LogCaptureFixture
) -> None:
    """New connections too: it stays distrustful, stops when told to, and comes back by itself."""
    settings, proxy = distant
    with listening(settings) as (_, invalidations, heard):
        before = heard.times
        proxy.mood = Mood.HANG
        until(lambda: not invalidations.trusted, "it distrusts")
        # Until then nothing was lost that would have to be forgotten.
        until(
            lambda: "lost contact with other processes" in caplog.text, "it gives the connection up"
        )
        proxy.mood = Mood.GOOD
        until(lambda: invalidations.trusted, "it listens again")
        until(lambda: heard.times > before, "all is forgotten")


def test_trust_ends_by_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nobody is left to say that no news come: the thread that would may hang."""
    with listening(settings) as (_, invalidations, _):
        with monkeypatch.context() as patched:
            patched.setattr(invalidation, "SILENCE_SECONDS", 0.0)
            assert not invalidations.trusted
        until(lambda: invalidations.trusted, "it hears all the time")
