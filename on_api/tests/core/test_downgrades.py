"""No downgrade destroys a row or a value unless that was said."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, Table, create_engine, inspect, text
from sqlalchemy.exc import DatabaseError

from alembic import command
from on_api.core.models import Database
from on_api.core.models.revisions import PROJECT
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker
from on_api.tests.core.test_migrations import ALEMBIC, alembic

CHECKED: Mapping[tuple[str, str], Any] = {
    ("accel_charges", "id"): "x" * 32,
    ("contents", "state"): "pinned",
    ("denied_cids", "status"): 410,
    ("files", "visibility"): "private",
    ("imports", "route"): "auto",
    ("imports", "status"): "done",
    ("import_items", "status"): "done",
    ("keys", "kind"): "key",
    ("pins", "status"): "pinned",
    ("secret_in_use", "version"): 2,
    ("visibility_changes", "visibility"): "private",
}
"""Values that a constraint wants, or without which nothing is lost."""
REBUILT = {
    ("processes", None),
    ("private_blocks", None),
    ("files", "blocks_known"),
    ("password_throttles", None),
}
"""What the code writes anew by itself, or forgets after a while: no data of anybody's."""
SEALED = ("sealed_for", "identity_id", "sealed_size", "sealed_start")

Columns = dict[str, set[str]]


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """One connection, as on-api makes them."""
    database = Database(Settings(_env_file=None, database_url=url))
    try:
        with database.engine.connect() as connection:
            yield connection
    finally:
        database.dispose()


def configured(connection: Connection, *, allowed: bool = False) -> Config:
    """Alembic on this connection."""
    config = Config(PROJECT / "alembic.ini")
    config.attributes["connection"] = connection
    config.cmd_opts = Namespace(x=["allow-data-loss=true"] if allowed else [])
    return config


def columns_of(connection: Connection) -> Columns:
    """Every table, with its columns."""
    found = inspect(connection)
    tables = {
        table: {column["name"] for column in found.get_columns(table)}
        for table in found.get_table_names()
        if table != "alembic_version"
    }
    connection.rollback()
    return tables


def value_for(table: str, column: Any, is_postgresql: bool) -> object:
    """Something that a column takes."""
    if (table, column.name) in CHECKED:
        return CHECKED[table, column.name]
    kind = str(column.type).partition("(")[0]
    if kind in {"UUID", "CHAR"}:
        return uuid.uuid4() if is_postgresql else uuid.uuid4().hex
    return {
        "BIGINT": 1, "INTEGER": 1, "BOOLEAN": True, "BLOB": b"x", "BYTEA": b"x", "JSON": {},
        "JSONB": {}, "DOUBLE": 1.0, "DOUBLE PRECISION": 1.0, "DATETIME": datetime.now(UTC),
        "TIMESTAMP": datetime.now(UTC),
    }.get(kind, "x")  # fmt: skip


def put_row(connection: Connection, name: str, column: str | None) -> None:
    """Put a row into a table, of the values that may be missing only that of `column`."""
    is_postgresql = connection.dialect.name == "postgresql"
    table = Table(name, MetaData(), autoload_with=connection, resolve_fks=False)
    values = {
        each.name: value_for(name, each, is_postgresql)
        for each in table.columns
        if each.name == column or (not each.nullable and each.server_default is None)
    }
    if is_postgresql:
        connection.execute(text("SET session_replication_role = replica"))  # no foreign keys
    else:
        connection.rollback()
        # Past SQLAlchemy: within a transaction it does nothing.
        sqlite = connection.connection.driver_connection
        assert isinstance(sqlite, sqlite3.Connection)
        sqlite.execute("PRAGMA foreign_keys = OFF")
    connection.execute(table.insert().values(**values))
    connection.commit()


def losses(before: Columns, after: Columns) -> list[tuple[str, str | None]]:
    """What a downgrade dropped: tables, and columns of tables that stay."""
    tables: list[tuple[str, str | None]] = [(table, None) for table in before.keys() - after.keys()]
    return tables + [
        (table, column) for table in after for column in before.get(table, set()) - after[table]
    ]


def test_no_downgrade_destroys_a_row_silently(new_database: DatabaseMaker) -> None:
    """Whatever any revision's downgrade drops, a row or value in it is refused by name, and is
    there afterwards; without one it goes through."""
    scripts = ScriptDirectory.from_config(Config(PROJECT / "alembic.ini"))
    revisions = [script.revision for script in scripts.walk_revisions()]
    with connected(new_database()) as connection:
        for revision in revisions:
            before = columns_of(connection)
            command.downgrade(configured(connection), "-1")
            dropped = losses(before, columns_of(connection))
            command.upgrade(configured(connection), revision)
            for table, column in dropped:
                if (table, column) in REBUILT:
                    continue
                put_row(connection, table, column)
                name = table if column is None else f"{table}.{column}"
                with pytest.raises(CommandError, match=rf"{name} \(1 row\).*allow-data-loss"):
                    command.downgrade(configured(connection), "-1")
                connection.rollback()
                assert columns_of(connection) == before
                count = text(f"SELECT count(*) FROM {table}")  # noqa: S608 (names of our own)
                assert connection.execute(count).scalar_one() == 1
                connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
                connection.commit()
            command.downgrade(configured(connection), "-1")
        assert columns_of(connection) == {}


def test_several_revisions_go_together_or_not_at_all(new_database: DatabaseMaker) -> None:
    """What the last of them would destroy keeps the first of them too; said so, it goes."""
    url = new_database()
    with connected(url) as connection:
        before = columns_of(connection)
        put_row(connection, "pins", None)
        with pytest.raises(CommandError, match=r"0003.*pins \(1 row\)"):
            command.downgrade(configured(connection), "0002")
        connection.rollback()
        assert columns_of(connection) == before
        command.downgrade(configured(connection, allowed=True), "0002")
        assert "pins" not in columns_of(connection)


def test_a_private_file_is_not_made_unreadable(new_database: DatabaseMaker) -> None:
    """On the command line: a sentence with the way out, and nothing has changed."""
    url = new_database()
    with connected(url) as connection:
        put_row(connection, "files", "sealed_start")
    with pytest.raises(AssertionError) as failure:
        alembic(url, "downgrade", "0003")
    assert "files.sealed_start (1 row)" in str(failure.value)
    assert "alembic -x allow-data-loss=true downgrade" in str(failure.value)
    assert "Traceback" not in str(failure.value)
    with connected(url) as connection:
        assert columns_of(connection)["files"].issuperset(SEALED)
    alembic(url, "-x", "allow-data-loss=true", "downgrade", "0003")
    with connected(url) as connection:
        assert not columns_of(connection)["files"].intersection(SEALED)


def test_offline_sql_refuses_as_well(new_database: DatabaseMaker, tmp_path: Path) -> None:
    """Run by hand, without a look before it was written: it fails, and what is there stays."""
    url = new_database()
    with connected(url) as connection:
        put_row(connection, "shares", None)
        before = columns_of(connection)
    sql = alembic(url, "downgrade", "head:0003", "--sql").stdout
    engine = create_engine(Settings(_env_file=None, database_url=url).sqlalchemy_url)
    if url.startswith("postgresql"):
        with engine.connect() as connection, pytest.raises(DatabaseError, match="allow-data-loss"):
            connection.exec_driver_sql(sql.replace("%", "%%"))
    else:
        path = str(engine.url.database)
        if (shell := shutil.which("sqlite3")) is not None:
            # It goes on behind an error unless told otherwise.
            ran = subprocess.run(
                [shell, path], input=sql, capture_output=True, text=True, timeout=60, check=False
            )
            assert "allow-data-loss" in ran.stderr
            assert ran.returncode != 0
        # Closed by hand: it still has the writer's place, which the script took and never left.
        with closing(sqlite3.connect(path)) as by_hand, pytest.raises(sqlite3.Error):
            by_hand.executescript(sql)
    engine.dispose()
    with connected(url) as connection:
        assert columns_of(connection) == before
        assert connection.execute(text("SELECT count(*) FROM shares")).scalar_one() == 1
    allowed = subprocess.run(
        [ALEMBIC, "-x", "allow-data-loss=true", "downgrade", "head:0003", "--sql"],
        cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "allow-data-loss" not in allowed.stdout
