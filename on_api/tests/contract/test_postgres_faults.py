"""A PostgreSQL that refuses, hangs or cuts: 503 in bounded time, nothing lost, the pool recovers
by itself."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from on_api.core.server_settings import DatabaseSettings
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.accounts.container import Accounts
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

QUICK = DatabaseSettings(
    connect_timeout=2, pool_timeout=2, statement_timeout=3, lock_timeout=3, pool_size=20
)
PATIENT = DatabaseSettings(connect_timeout=30, statement_timeout=30)
"""What is only slow must stay within the limits, also on a machine that is slow itself: while an
answer trickles in, PostgreSQL takes us for idle in the transaction."""


@pytest.fixture
def proxy_and_server(
    request: pytest.FixtureRequest,
    postgres_database: DatabaseMaker,
    settings_for: Callable[..., Settings],
) -> Iterator[tuple[TcpProxy, Server]]:
    """A server whose way to its database goes through the proxy; a test may give its limits."""
    limits = getattr(request, "param", QUICK)
    direct = make_url(postgres_database())
    folder = direct.query["host"]

    def dial() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(Path(str(folder)) / f".s.PGSQL.{direct.port or 5432}"))
        return connection

    with proxied(dial) as proxy:
        url = direct.set(host="127.0.0.1", port=proxy.port, query={})
        settings = settings_for(url.render_as_string(hide_password=False), database=limits)
        with Server(settings) as server:
            yield proxy, server


def test_a_revoked_key_and_a_connection_that_fell_silent(
    proxy_and_server: tuple[TcpProxy, Server],
) -> None:
    """Its end is told by another process to a listener that hears nothing any more: what is known
    of keys is not believed for long."""
    proxy, server = proxy_and_server
    account = server.new_user()
    with account.client as client:
        made = client.post("/v1/keys", json={"name": "k", "scopes": ["files:read"]}).json()
        with server.client(made["key"]) as other:
            assert [other.get("/v1/files").status_code for _ in range(3)] == [200] * 3
            proxy.mute_listeners()
            accounts = Accounts.build(server.settings)
            with accounts.database.session_scope() as session:
                accounts.keys.revoke(
                    session, uuid.UUID(account.id), uuid.UUID(made["id"]), COMMAND_LINE
                )
            accounts.database.dispose()
            until(lambda: other.get("/v1/files").status_code == 401, "it is refused", 20)


@pytest.mark.parametrize("mood", [Mood.REFUSE, Mood.HANG, Mood.CUT, Mood.GARBAGE])
def test_database_gone_and_back(proxy_and_server: tuple[TcpProxy, Server], mood: Mood) -> None:
    """Lists and uploads are 503 with Retry-After; health answers meanwhile; then everything works
    again."""
    proxy, server = proxy_and_server
    account: Account = server.new_user()
    with account.client as client:
        kept = account.upload(b"kept")
        proxy.mood = mood
        answers = []

        def ask() -> None:
            answers.append(client.get("/v1/files"))
            answers.append(client.put("/v1/files?name=x", content=os.urandom(100)))

        asking = threading.Thread(target=ask)
        asking.start()
        meanwhile = 0
        while asking.is_alive():
            with server.client() as other:
                assert other.get("/healthz").status_code == 200
            meanwhile += asking.is_alive()
            time.sleep(0.05)  # not to be the load itself
        assert meanwhile >= 3 or mood is not Mood.HANG
        assert [answer.status_code for answer in answers] == [503, 503]
        for answer in answers:
            assert answer.json()["error"]["reason"] == "DATABASE_UNAVAILABLE"
            assert int(answer.headers["retry-after"]) > 0
            assert "127.0.0.1" not in answer.text
        assert client.get("/readyz").status_code == 503
        figures = client.get("/metrics")
        assert figures.status_code == 200
        assert "\non_api_database_up 0.0\n" in figures.text
        assert "\non_api_node_up 0.0\n" not in figures.text
        assert "\non_api_queue_jobs{" not in figures.text
        proxy.mood = Mood.GOOD
        until(lambda: client.get("/readyz").status_code == 200, "the database is back", 20)
        assert client.get(f"/v1/files/{kept['id']}/content").content == b"kept"
        assert client.put("/v1/files?name=y", content=b"after").status_code == 201
        assert client.get("/v1/files").json()["count"] == 2
        until(lambda: server.services.database.connections_in_use() == 0, "the pool is whole")


def test_database_lost_while_bytes_flow(proxy_and_server: tuple[TcpProxy, Server]) -> None:
    """The upload that can't be recorded is 503 and leaves no record; its pin is left with a
    lease."""
    proxy, server = proxy_and_server
    account = server.new_user()
    begun = threading.Event()

    def body() -> Iterator[bytes]:
        yield os.urandom(2_000_000)
        begun.set()
        until(lambda: proxy.mood is not Mood.GOOD, "the database is gone")
        yield b"the end"

    with account.client as client:
        answers = []
        uploading = threading.Thread(
            target=lambda: answers.append(client.put("/v1/files?name=x", content=body()))
        )
        uploading.start()
        assert begun.wait(10)
        proxy.mood = Mood.REFUSE
        uploading.join(60)
        assert answers[0].status_code == 503
        proxy.mood = Mood.GOOD
        until(lambda: client.get("/readyz").status_code == 200, "the database is back", 20)
        assert client.get("/v1/files").json()["count"] == 0
        assert client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 0


@pytest.mark.parametrize("proxy_and_server", [PATIENT], indirect=True, ids=["patient"])
def test_a_slow_database_is_only_slow(proxy_and_server: tuple[TcpProxy, Server]) -> None:
    """Late answers are answers."""
    proxy, server = proxy_and_server
    account = server.new_user()
    with account.client as client:
        proxy.mood = Mood.SLOW
        assert client.put("/v1/files?name=x", content=b"x").status_code == 201
        assert client.get("/v1/files").json()["count"] == 1
        proxy.mood = Mood.GOOD


def test_a_question_that_takes_too_long(
    postgres_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """It is ended, and its user is told so, and what to ask instead; everything else goes on."""
    with Server(settings_for(postgres_database(), database=QUICK)) as server:
        account = server.new_user()
        with account.client as client:
            account.upload(b"anything", "a name")
            with server.services.database.session_scope() as session:
                # As if there were so many files.
                session.execute(text("ALTER TABLE files RENAME TO few_files"))
                slow = "SELECT few_files.* FROM few_files, (SELECT pg_sleep(20)) AS long"
                session.execute(text(f"CREATE VIEW files AS {slow}"))
            for version, reason in (("v1", "error"), ("v2", None)):
                answer = client.get(f"/{version}/files", params={"name_contains": "nam"})
                assert answer.status_code == 503
                told = answer.json()[reason]["reason"] if reason else answer.json()["code"]
                assert told == "QUERY_TOO_SLOW"
                assert int(answer.headers["retry-after"]) > 0
            assert client.get("/v1/pins").status_code == 200
            until(lambda: server.services.database.connections_in_use() == 0, "the pool is whole")
