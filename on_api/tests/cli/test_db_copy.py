"""`on-api db copy`: a deployment goes on in another database as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, TextClause, create_engine, select, text, update

from on_api.core.models import Database, Pin, User
from on_api.core.models.database import database_now, new_id
from on_api.core.models.revisions import PROJECT
from on_api.tests.conftest import PASSWORD, DatabaseMaker, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import ON_API, Home
from on_api.tests.testing.rows import pin_row, user_row

PASSPHRASE = "a passphrase of the tests"
OTHERS = {"/healthz", "/readyz", "/metrics", "/v1/node", "/v2/node"}
"""Paths that describe the process and the node, not the database."""
CHANGING = {"last_used_at", "instance", "forecast"}
"""Fields that tell of the looking itself (key's use, id of the request) or of the time of day."""
AT_ONCE = 1000
"""Files in one upload."""


@dataclass(frozen=True)
class Filled:
    """Things of one user, by which a deployment is recognised."""

    admin: str
    key: str
    link: str
    """URL of a share, which has a password."""
    ids: dict[str, list[str]]
    """Ids by the name that they have in paths."""

    def answers(self, home: Home) -> dict[str, Any]:
        """Return the answer of every list, object and sum that a user and an administrator get."""
        told: dict[str, Any] = {}
        with home.client(self.key) as user, home.client(self.admin) as admin:
            for version in ("v1", "v2"):
                for path in paths_of(user, version, self.ids):
                    told[f"user {path}"] = everything(user, path)
                    told[f"admin {path}"] = everything(admin, path)
        return told

    def opens(self, client: httpx.Client) -> None:
        """Read what is encrypted, each by what opens it."""
        *_, private, sealed = self.ids["file_id"]
        assert client.get(f"/v1/files/{private}/content").content == b"private" * 99
        passphrase = {"On-Api-Passphrase": PASSPHRASE}
        assert client.get(f"/v1/files/{sealed}/content", headers=passphrase).content == b"sealed"
        for password, status in ((PASSWORD, 200), ("wrong", 403)):
            answer = client.get(
                httpx.URL(self.link).path,
                params={"download": "true"},
                headers={"On-Api-Share-Password": password},
            )
            assert answer.status_code == status, answer.text


def paths_of(client: httpx.Client, version: str, ids: dict[str, list[str]]) -> Iterator[str]:
    """Return the paths of all operations that only look, from the API's own description."""
    for path, operations in made(client.get(f"/{version}/openapi.json"))["paths"].items():
        # An export is written to the audit log, and content is counted as traffic.
        if "get" not in operations or path in OTHERS or path.endswith(("/export", "/content")):
            continue
        name = re.search(r"{(\w+)}", path)
        if name is None:
            yield path
        elif name[1] in ids:
            yield from (path.replace(name[0], each) for each in ids[name[1]])
        else:
            assert name[1] in {"token", "cid"}, path


def everything(client: httpx.Client, path: str) -> Any:
    """Return an answer with its status; of v2's long lists all pages."""
    is_list = path.endswith(("/files", "/pins", "/shares", "/keys", "/users", "/audit", "/items"))
    query: dict[str, Any] = {"limit": 1000} if is_list else {}
    answer = client.get(path, params=query)
    pages = [settled(answer.json())]
    while isinstance(pages[-1], dict) and (cursor := pages[-1].get("next_cursor")):
        pages.append(settled(made(client.get(path, params={**query, "cursor": cursor}))))
    return answer.status_code, pages


def settled(value: Any) -> Any:
    """Return a document without what changes by itself (`CHANGING`); of the node's addresses its
    identity is kept."""
    if isinstance(value, list):
        return [settled(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {name: settled(each) for name, each in value.items() if name not in CHANGING}
    if "delegates" in kept:
        kept["delegates"] = {address.rpartition("/")[2] for address in kept["delegates"]}
    return kept


def made(answer: httpx.Response) -> Any:
    """Return the document of an answer that is a success."""
    assert answer.is_success, answer.text
    return answer.json()


def fill(home: Home, admin: str, files: int) -> Filled:
    """Make a bit of everything, and so many public files."""
    login = {"username": "ada", "password": PASSWORD}
    with home.client(admin) as client:
        user = made(client.post("/v1/users", json=login))
        token = made(client.post("/v1/auth/token", data=login))["access_token"]
    with home.client(token) as client:
        scopes = ["files:read", "files:write", "pins:read", "pins:write", "shares:write"]
        scopes += ["traffic:read", "imports:write", "keys:write"]
        key = made(client.post("/v1/keys", json={"name": "all", "scopes": scopes}))
    with home.client(key["key"]) as client:
        client.timeout = httpx.Timeout(600)
        uploaded = []
        for start in range(0, files, AT_ONCE):
            numbers = range(start, min(files, start + AT_ONCE))
            form = [("file", (f"file {n} \u5730", b"%d" % n, "text/plain")) for n in numbers]
            uploaded += made(client.post("/v1/files", files=form))["items"]
        first, last = uploaded[0], uploaded[-1]
        private = made(client.put("/v1/files?name=p&visibility=private", content=b"private" * 99))
        sealed = made(
            client.put(
                "/v1/files?name=s&visibility=private",
                content=b"sealed",
                headers={"On-Api-Passphrase": PASSPHRASE},
            )
        )
        made(client.patch(f"/v1/files/{first['id']}", json={"meta": {"n": 1.5, "\u5730": "x"}}))
        share = {"file_id": private["id"], "password": PASSWORD}
        share = made(client.post("/v1/shares", json=share))
        pin = made(client.post("/v1/pins", json={"cid": first["cid"], "meta": {"a": "b"}}))
        source = {"kind": "cids", "text": f"{last['cid']} again\n"}
        imported = made(client.post("/v1/imports", json={"source": source, "start": True}))
        of_import = f"/v1/imports/{imported['id']}"
        until(lambda: made(client.get(of_import))["status"] == "done", "the import is done", 60)
        assert client.get(f"/ipfs/{last['cid']}").status_code == 200
        once(client)
        filled = Filled(
            admin,
            key["key"],
            share["url"],
            {
                "file_id": [each["id"] for each in (first, last, private, sealed)],
                "user_id": [user["id"]],
                "key_id": [key["id"]],
                "share_id": [share["id"]],
                "requestid": [pin["requestid"]],
                "import_id": [imported["id"]],
            },
        )
        filled.opens(client)
    assert home.run("gateway", "deny", first["cid"], "--reason", "a letter").returncode == 0
    return filled


def once(client: httpx.Client) -> None:
    """Upload a file with an idempotency key: the second time it is the first one's answer."""
    made(client.put("/v1/files?name=once", content=b"once", headers={"Idempotency-Key": "once"}))


def count_of_files(client: httpx.Client) -> int:
    """Return how many files the user has."""
    return int(made(client.get("/v1/files?limit=1"))["count"])


@pytest.mark.parametrize(
    "files",
    [120, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_a_deployment_moves_to_postgresql(
    home: Home, postgres_database: DatabaseMaker, files: int
) -> None:
    """Every answer before is the answer after, with the same home, keys and node; and it goes on:
    what was pinned is known as ours, what is encrypted opens, new files come to the old ones."""
    admin = home.init()
    with home.serving():
        filled = fill(home, admin, files)
    with home.serving():
        before = filled.answers(home)
    assert str(before["user /v2/files"]).count("sha256") == files + 3

    url = postgres_database.empty()
    home.extra["TARGET_URL"] = url
    done = home.run("db", "copy", "--to", "env:TARGET_URL", "--json")
    assert done.returncode == 0, done.stderr
    rows = {each["table"]: each["rows"] for each in json.loads(done.stdout)}
    assert rows["files"] == files + 3
    assert "copying files" in done.stderr

    (home.path / "on-api.db").unlink()  # nothing can come from there
    home.extra = {"ON_API_DATABASE_URL": url}
    with home.serving(), home.client(filled.key) as client:
        after = filled.answers(home)
        assert [path for path in before if after[path] != before[path]] == []
        assert len(after) == len(before)
        count = count_of_files(client)
        once(client)
        filled.opens(client)
        assert count_of_files(client) == count
        made(client.put("/v1/files?name=new", content=os.urandom(50)))
        assert count_of_files(client) == count + 1
        found = home.run("fsck", "--json")
        assert (found.returncode, json.loads(found.stdout)["findings"]) == (0, [])


@pytest.fixture
def filled_home(home: Home) -> Home:
    """A home with an administrator and a hundred users."""
    home.init()
    database = Database(make_settings(home.path, own(home)))
    with database.session_scope() as session:
        session.add_all(user_row(f"user-{number}") for number in range(100))
    database.dispose()
    return home


def own(home: Home) -> str:
    """Return the URL of a home's SQLite database."""
    return f"sqlite:///{home.path / 'on-api.db'}"


def users_in(url: str) -> int:
    """Return the number of users in a database."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        found = connection.scalar(text("SELECT count(*) FROM users"))
    engine.dispose()
    return int(found or 0)


def test_there_and_back(filled_home: Home, new_database: DatabaseMaker, tmp_path: Path) -> None:
    """To either engine and back into a file, which only its owner can read; told in tables."""
    url = new_database.empty()
    back = tmp_path / "back.db"
    filled_home.extra["ON_API_DATABASE_URL"] = url
    there = filled_home.run("db", "copy")
    again = filled_home.run("db", "copy", "--from", url, "--to", f"sqlite:///{back}")
    assert (there.returncode, again.returncode) == (0, 0), there.stderr + again.stderr
    assert there.stdout == again.stdout
    assert re.search(r"^users +101 +[0-9a-f]{16}$", there.stdout, re.MULTILINE)
    assert users_in(f"sqlite:///{back}") == 101
    assert stat.S_IMODE(back.stat().st_mode) == 0o600


WAIT = (
    "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$"
    " BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$",
    "CREATE TRIGGER wait AFTER INSERT ON user_usage EXECUTE FUNCTION wait()",
)


def test_killed_in_the_middle(filled_home: Home, postgres_database: DatabaseMaker) -> None:
    """The target has tables and no rows, and the next copy fills it."""
    url = postgres_database()
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg2://"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        for statement in (*WAIT, "SELECT pg_advisory_lock(1)"):
            connection.exec_driver_sql(statement)
        process = subprocess.Popen(
            [ON_API, "db", "copy", "--to", url],
            env=filled_home.environment,
            cwd=PROJECT,
            stderr=subprocess.PIPE,
        )
        waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        until(lambda: _is_so(connection, waits), "the copy is in its middle", 60)
        process.kill()
        process.communicate()
        connection.exec_driver_sql("SELECT pg_advisory_unlock(1)")
        left = text("SELECT count(*) < 2 FROM pg_stat_activity WHERE datname = current_database()")
        until(lambda: _is_so(connection, left), "PostgreSQL has noticed", 30)
        connection.exec_driver_sql("DROP TRIGGER wait ON user_usage")
    engine.dispose()
    assert users_in(url) == 0
    done = filled_home.run("db", "copy", "--to", url)
    assert done.returncode == 0, done.stderr
    assert users_in(url) == 101


def _is_so(connection: Connection, question: TextClause) -> bool:
    return bool(connection.scalar(question))


def refused(home: Home, *arguments: str) -> str:
    """Return why a copy is refused."""
    done = home.run("db", "copy", *arguments)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_what_is_no_target(filled_home: Home, tmp_path: Path) -> None:
    """Rows, other people's tables, the source itself, nothing at all."""
    assert "ON_API_DATABASE_URL" in refused(filled_home)
    assert "same database" in refused(filled_home, "--to", own(filled_home))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert filled_home.run("db", "copy", "--to", other).returncode == 0
    assert "not empty" in refused(filled_home, "--to", other)
    assert users_in(other) == 101
    theirs = f"sqlite:///{tmp_path / 'theirs.db'}"
    engine = create_engine(theirs)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
    engine.dispose()
    assert "none of on-api's" in refused(filled_home, "--to", theirs)
    assert "nonexistent" in refused(filled_home, "--to", "sqlite:////nonexistent/x.db")
    assert "--to" in refused(filled_home, "--to", "mysql://x")


def test_what_is_no_source(filled_home: Home, tmp_path: Path) -> None:
    """A file that isn't there, and is not made; no database of on-api; an old revision."""
    new = tmp_path / "new.db"
    to = ("--to", f"sqlite:///{new}")
    missing = tmp_path / "missing.db"
    assert str(missing) in refused(filled_home, "--from", f"sqlite:///{missing}", *to)
    assert not missing.exists()
    missing.touch()
    assert "source of the copy" in refused(filled_home, "--from", f"sqlite:///{missing}", *to)
    engine = create_engine(own(filled_home))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0018'"))
    engine.dispose()
    assert "at revision 0018" in refused(filled_home, *to)
    assert new.stat().st_size == 0 or "users" not in new.read_text(errors="replace")


def test_a_password_in_the_arguments(filled_home: Home) -> None:
    """Warned of, told nowhere; from the environment nothing is to be warned of."""
    url = "postgresql://ada:s3cret@127.0.0.1:1/x"
    told = refused(filled_home, "--to", url)
    assert "env:NAME" in told
    assert "s3cret" not in told
    filled_home.extra["TARGET_URL"] = url
    told = refused(filled_home, "--to", "env:TARGET_URL")
    assert "warning" not in told
    assert "127.0.0.1:1/x" in told
    assert "s3cret" not in told
    assert "'MISSING'" in refused(filled_home, "--to", "env:MISSING")


def test_while_it_is_in_use(filled_home: Home, tmp_path: Path) -> None:
    """Refused beside a running on-api, beside a process of another home, and while a lease lives:
    what they write would be lost."""
    to = ("--to", f"sqlite:///{tmp_path / 'new.db'}")
    elsewhere = Home(tmp_path / "elsewhere")
    with filled_home.serving() as process:
        assert f"(process {process.pid})" in refused(filled_home, *to)
        until(
            lambda: (
                f"process {process.pid} on" in refused(elsewhere, "--from", own(filled_home), *to)
            ),
            "the process shows itself in the database",
        )
    database = Database(make_settings(tmp_path, own(filled_home)))
    with database.session_scope() as session:
        user_id = session.scalars(select(User.id).limit(1)).one()
        life = database_now(timedelta(hours=1))
        session.add(pin_row(user_id, "bafkqaaa", lease_token=new_id(), lease_until=life))
    assert "rows of pins" in refused(filled_home, *to)
    with database.session_scope() as session:
        session.execute(update(Pin).values(lease_until=database_now()))
    database.dispose()
    assert filled_home.run("db", "copy", *to).returncode == 0
