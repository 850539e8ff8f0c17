"""`/readyz` says what is wrong, whatever it is, and soon: nothing that hangs is waited for longer
than its deadline, and none of it is asked twice at once."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from on_api.core.errors import DatabaseUnavailable
from on_api.core.models import Database
from on_api.core.server_settings import DatabaseSettings
from on_api.core.services.upkeep.readiness import DEADLINE_SECONDS, FRESH_SECONDS
from on_api.core.setting_groups import NodeSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.postgres import running_postgres
from on_api.tests.testing.small_disk import small_disk
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

SOON = 10
"""Seconds: far more than the deadline, on any machine, and far less than what hangs."""
assert DEADLINE_SECONDS < 2


def failed(answer: httpx.Response) -> dict[str, str]:
    """What isn't well, and why."""
    return {check["name"]: check["details"] for check in answer.json()["checks"] if not check["ok"]}


def asked(client: httpx.Client) -> httpx.Response:
    """An answer, which must have come soon."""
    began = time.monotonic()
    answer = client.get("/readyz")
    assert time.monotonic() - began < SOON
    return answer


def to(url: str | None) -> TcpProxy:
    """A proxy to an origin."""
    place = urlsplit(str(url))
    target = (str(place.hostname), int(place.port or 0))
    return TcpProxy(lambda: socket.create_connection(target, 5))


@pytest.fixture
def node_way(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], kubo: Kubo
) -> Iterator[tuple[Server, TcpProxy, TcpProxy]]:
    """A server, and what stands between it and its node's RPC and gateway."""
    with ExitStack() as stack:
        rpc, gateway = to(kubo.ipfs.rpc_url), to(kubo.ipfs.gateway_url)
        stack.callback(rpc.close)
        stack.callback(gateway.close)
        urls = {
            "rpc_url": f"http://127.0.0.1:{rpc.port}",
            "gateway_url": f"http://127.0.0.1:{gateway.port}",
        }
        settings = settings_for(new_database(), ipfs=kubo.ipfs.model_copy(update=urls))
        yield stack.enter_context(Server(settings)), rpc, gateway


@pytest.mark.parametrize("mood", [Mood.HANG, Mood.REFUSE, Mood.GARBAGE])
@pytest.mark.parametrize("which", ["node", "gateway"])
def test_a_bad_node(node_way: tuple[Server, TcpProxy, TcpProxy], which: str, mood: Mood) -> None:
    """By its RPC or its gateway; very many who ask make no more connections than one would."""
    server, rpc, gateway = node_way
    proxy = {"node": rpc, "gateway": gateway}[which]
    with server.client() as client:
        until(lambda: client.get("/readyz").status_code == 200, "all is well")
        proxy.mood = mood
        answer = until(
            lambda: a if (a := asked(client)).status_code == 503 else None, "it is noticed"
        )
        assert which in failed(answer)
        assert "127.0.0.1" not in answer.text
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: asked(client), range(60)))
        assert {answer.status_code for answer in answers} == {503}
        assert proxy.connections < 6
        assert client.get("/healthz").status_code == 200
        proxy.mood = Mood.GOOD
        until(lambda: client.get("/readyz").status_code == 200, "all is well again", 60)


def test_a_gateway_that_is_none(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], kubo: Kubo
) -> None:
    """Another program answers there, with 200 or without."""
    ipfs = kubo.ipfs.model_copy(update={"gateway_url": kubo.ipfs.rpc_url})
    with Server(settings_for(new_database(), ipfs=ipfs)) as server, server.client() as client:
        answer = asked(client)
        assert answer.status_code == 503
        assert list(failed(answer)) == ["gateway"]


def test_a_full_node_is_told_and_serves(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """What is stored can still be had: no reason to send nobody here any more."""
    settings = settings_for(new_database(), node=NodeSettings(min_free=2**62))
    with Server(settings) as server, server.client() as client:
        answer = asked(client)
        assert (answer.status_code, list(failed(answer))) == (200, ["room"])
        assert "507" in failed(answer)["room"]


def test_a_hung_postgresql(
    postgres_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Black-holed, with the usual time-outs: told soon, without a thread or a connection for each
    who asks, and well again by itself."""
    direct = make_url(postgres_database())

    def dial() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(Path(str(direct.query["host"])) / f".s.PGSQL.{direct.port or 5432}"))
        return connection

    with proxied(dial) as proxy:
        url = direct.set(host="127.0.0.1", port=proxy.port, query={})
        settings = settings_for(url.render_as_string(hide_password=False))
        with Server(settings) as server, server.client() as client:
            until(lambda: client.get("/readyz").status_code == 200, "all is well")
            proxy.mood = Mood.HANG
            all_of_it = {"database", "migrations", "writes"}
            until(lambda: all_of_it <= failed(asked(client)).keys(), "all of it is noticed")
            with ThreadPoolExecutor(20) as threads:
                answers = list(threads.map(lambda _: asked(client), range(60)))
            assert {answer.status_code for answer in answers} == {503}
            # Two looks; who else holds one is the worker, the housekeeper, the meter.
            assert server.services.database.connections_in_use() < 30
            proxy.mood = Mood.GOOD
            until(lambda: client.get("/readyz").status_code == 200, "all is well again", 60)


def test_a_used_up_pool(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> None:
    """Every connection is in use: nobody else gets one, and that is what is said."""
    limits = DatabaseSettings(pool_size=2, max_overflow=4)
    settings = settings_for(new_database(), database=limits, threads=4)
    with Server(settings) as server, server.client() as client:
        until(lambda: client.get("/readyz").status_code == 200, "all is well")
        go_on, database = threading.Event(), server.services.database

        def hold() -> None:
            with database.session_scope(write=False) as session:
                session.execute(text("SELECT 1"))
                go_on.wait(60)

        with ThreadPoolExecutor(6) as threads:
            try:
                for _ in range(6):
                    threads.submit(hold)
                answer = until(
                    lambda: a if "database" in failed(a := asked(client)) else None, "it is noticed"
                )
                assert "6 connections" in failed(answer)["database"]
            finally:
                go_on.set()
        until(lambda: client.get("/readyz").status_code == 200, "all is well again", 60)


def test_a_database_that_takes_no_writes(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Read-only, as a standby is: an error with a name instead of a failure of ours."""
    database = Database(settings_for(new_database()))
    forbid = "SET TRANSACTION READ ONLY" if database.is_postgresql else "PRAGMA query_only = ON"

    def write() -> None:
        with database.session_scope() as session:
            session.execute(text(forbid))
            session.execute(text("UPDATE deployment SET name = name"))

    try:
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            write()
    finally:
        database.dispose()


def test_a_locked_sqlite(
    sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Another program holds the one place to write: told soon; who reads is served."""
    url = sqlite_database()
    with Server(settings_for(url)) as server, server.client() as client:
        until(lambda: client.get("/readyz").status_code == 200, "all is well")
        other = sqlite3.connect(str(make_url(url).database), isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            answer = until(
                lambda: a if (a := asked(client)).status_code == 503 else None, "it is noticed"
            )
            assert list(failed(answer)) == ["writes"]
            other.execute("ROLLBACK")
        finally:
            other.close()
        until(lambda: client.get("/readyz").status_code == 200, "all is well again", 60)


def refusal(client: httpx.Client) -> str | None:
    """Upload a little. Returns why it is refused, None when it is not."""
    answer = client.put("/v1/files?name=x", content=os.urandom(50))
    return None if answer.status_code == 201 else str(answer.json()["error"]["details"])


def fill(folder: Path) -> Path:
    """Write a file that takes all the room there is. Returns its path."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1024 * 1024)):
            pass
    return filler


def test_a_full_disk_below_sqlite(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path: Path
) -> None:
    """It is told before an upload finds out, and well again when there is room."""
    with small_disk(tmp_path / "disk", 32) as folder:
        database = folder / "on-api.db"
        database.write_bytes(Path(str(make_url(sqlite_database()).database)).read_bytes())
        settings = make_settings(tmp_path, f"sqlite:///{database}", ipfs=kubo.ipfs)
        with Server(settings) as server, server.client() as client:
            until(lambda: client.get("/readyz").status_code == 200, "all is well")
            filler = fill(folder)
            answer = until(
                lambda: a if (a := asked(client)).status_code == 503 else None, "it is noticed"
            )
            assert list(failed(answer)) == ["writes"]
            assert "full" in failed(answer)["writes"]
            filler.unlink()
            until(lambda: client.get("/readyz").status_code == 200, "all is well again")


def without_temporary_tables(url: str) -> str:
    """Make a role that may create no temporary tables. Returns the database's URL for it."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"))
    with engine.begin() as connection:
        for statement in (
            "CREATE ROLE plain LOGIN",
            f"REVOKE TEMPORARY ON DATABASE {make_url(url).database} FROM PUBLIC",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO plain",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain",
        ):
            connection.execute(text(statement))
    engine.dispose()
    return make_url(url).set(username="plain").render_as_string(hide_password=False)


@pytest.mark.parametrize("privileged", [True, False])
def test_a_full_disk_below_postgresql(kubo: Kubo, tmp_path: Path, privileged: bool) -> None:
    """It is told from the first write on that found none, and until there is room again; without
    the privilege of making temporary tables, well again at once."""
    with (
        small_disk(tmp_path / "disk", 160) as folder,
        running_postgres(folder) as postgres,
    ):
        url = DatabaseMaker(tmp_path, postgres.url)()
        if not privileged:
            url = without_temporary_tables(url)
        settings = make_settings(tmp_path, url, ipfs=kubo.ipfs)
        with Server(settings) as server, server.client() as client:
            account = server.new_user()
            until(lambda: client.get("/readyz").status_code == 200, "all is well")
            filler = fill(folder)
            with account.client as user:
                refused = until(lambda: refusal(user), "an upload is refused")
                assert refused == "The database's disk is full."
                if privileged:
                    until(lambda: "writes" in failed(asked(client)), "it is noticed")
                    noticed = time.monotonic()
                    while time.monotonic() < noticed + 3 * FRESH_SECONDS:  # three looks
                        assert "full" in failed(asked(client))["writes"]
                filler.unlink()
                until(lambda: client.get("/readyz").status_code == 200, "all is well again")
                assert user.put("/v1/files?name=x", content=b"after").status_code == 201
