"""Copies from one database to another, in every direction: all tables, all kinds of values."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Uuid,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.types import TypeDecorator

from on_api.core.errors import Conflict, StartupError
from on_api.core.models import Base, Database, Event, Process, User
from on_api.core.models.copying import BATCH_ROWS, CopiedTable, copy_rows, snapshot
from on_api.core.models.database import NAMING_CONVENTION
from on_api.core.services.upkeep.moving import move
from on_api.tests.conftest import DatabaseMaker, make_settings
from on_api.tests.testing.rows import user_row

Open = Callable[[DatabaseMaker], Database]

CHOSEN = {
    ("denied_cids", "status"): 451,
    ("contents", "state"): "unpinning",
    ("deployment", "id"): 1,
    ("files", "visibility"): "private",
    ("imports", "route"): "auto",
    ("imports", "status"): "paused",
    ("import_items", "status"): "moving",
    ("keys", "kind"): "token",
    ("pins", "status"): "failed",
    ("secret_in_use", "id"): 1,
    ("visibility_changes", "visibility"): "public",
}
"""Values of columns that don't take any value of their type."""

DOCUMENT = {
    "ключ": ["値", None, True, False, 1, 1.5, -0.0, {"deep": {"er": []}}],
    "large": 2**62,
    "a": 1e22,
    "small": 1e-300,
    "": "quote ' and \\ and \U0001f994",
}


@pytest.fixture
def opened_from(tmp_path: Path) -> Iterator[Open]:
    """A way to open a new database of a maker."""
    opened: list[Database] = []

    def make(maker: DatabaseMaker) -> Database:
        opened.append(Database(make_settings(tmp_path, maker())))
        return opened[-1]

    yield make
    for database in opened:
        database.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def source(request: pytest.FixtureRequest, opened_from: Open) -> Database:
    """A migrated database to copy from."""
    return opened_from(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, opened_from: Open) -> Database:
    """A migrated database to copy into."""
    return opened_from(request.getfixturevalue(f"{request.param}_database"))


@contextmanager
def both(source: Database, target: Database) -> Iterator[tuple[Connection, Connection]]:
    """Open what `copy_rows` needs."""
    with snapshot(source) as reading, target.session_scope() as session:
        yield reading, session.connection()


def copied(source: Database, target: Database, **more: Any) -> list[CopiedTable]:
    """Copy, and commit."""
    with both(source, target) as connections:
        return copy_rows(*connections, **more)


def some_value(column: Column[Any], number: int) -> Any:
    """Return a value of a column's type that is hard to carry over."""
    kind = column.type.impl if isinstance(column.type, TypeDecorator) else column.type
    if (column.table.name, column.name) in CHOSEN:
        return CHOSEN[column.table.name, column.name]
    if isinstance(kind, DateTime):
        return datetime(2026, 11, 29, 23, 59, number, 999_999, tzinfo=UTC)
    if isinstance(kind, JSON):
        return {**DOCUMENT, "number": number}
    for of, value in (
        (Uuid, uuid.uuid4()),
        (LargeBinary, b"\x00\xff'\\" + os.urandom(8)),
        (Boolean, True),
        (Float, 0.1),
        (Integer, (2**62 if isinstance(kind, BigInteger) else 2**31 - 1) - number),
    ):
        if isinstance(kind, of):
            return value
    assert isinstance(kind, String), column
    return f"{number}ñ'\\%s:x 地\U0001f994"[: kind.length]


def fill(database: Database) -> None:
    """Insert two rows into each table: one with all values, one with as few as there may be."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with database.session_scope() as session:
        for table in Base.metadata.sorted_tables:
            has_one_row = (table.name, "id") in CHOSEN
            for number in (1,) if has_one_row else (1, 2):
                rows[table.name, number] = {
                    column.name: rows[key.column.table.name, number][key.column.name]
                    if (key := next(iter(column.foreign_keys), None))
                    else some_value(column, number)
                    for column in table.columns
                    if number == 1 or not column.nullable
                }
                session.execute(insert(table), rows[table.name, number])


def rows_of(database: Database, table: Table) -> list[tuple[Any, ...]]:
    """Return all rows, in the order of their keys."""
    with database.session_scope(write=False) as session:
        found = session.execute(select(table).order_by(*table.primary_key)).all()
    return [tuple(row) for row in found]


def test_every_table_and_every_kind_of_value(source: Database, target: Database) -> None:
    """All tables of a migrated database, each value as it was, and a copy of the copy alike."""
    fill(source)
    tables = copied(source, target)
    with source.session_scope(write=False) as session:
        there = set(inspect(session.connection()).get_table_names())
    assert {each.name for each in tables} == there - {"alembic_version"}
    for each in tables:
        table = Base.metadata.tables[each.name]
        assert each.rows == (1 if (each.name, "id") in CHOSEN else 2)
        assert rows_of(target, table) == rows_of(source, table), each.name


def test_checksums_are_those_of_the_values(
    sqlite_database: DatabaseMaker, postgres_database: DatabaseMaker, opened_from: Open
) -> None:
    """Alike on both engines and there and back; of other values, others."""
    first, second, third = (
        opened_from(maker) for maker in (sqlite_database, postgres_database, sqlite_database)
    )
    fill(first)
    with first.session_scope() as session:
        # PostgreSQL writes it in 301 digits, and it is read as an integer.
        session.execute(text("""UPDATE events SET data = '{"huge": 1e+300}'"""))
    there = copied(first, second)
    with second.session_scope() as session:
        # Another place on the disk, and another order of the rows.
        session.execute(text("UPDATE users SET active = active WHERE username LIKE '1%'"))
    assert copied(second, third) == there
    with first.session_scope() as session:
        session.execute(
            text("UPDATE files SET size = size - 1 WHERE size = (SELECT max(size) FROM files)")
        )
    again = copied(first, opened_from(sqlite_database))
    assert [a.name for a, b in zip(again, there, strict=True) if a != b] == ["files"]


def test_more_rows_than_one_batch(source: Database, target: Database) -> None:
    """None is lost between batches; the progress counts up to all of them, twice."""
    many = 2 * BATCH_ROWS + 7
    with source.session_scope() as session:
        session.add_all(user_row(f"user-{number}") for number in range(many))
    seen: list[tuple[str, int, int]] = []
    tables = {
        each.name: each.rows for each in copied(source, target, progress=lambda *a: seen.append(a))
    }
    assert (tables["users"], tables["user_usage"]) == (many, many)
    for what in ("copying users", "checking users"):
        counts = [done for name, done, total in seen if name == what and total == many]
        assert counts == sorted(counts)
        assert counts[-1] == many


def test_numbers_go_on(sqlite_database: DatabaseMaker, opened_from: Open, target: Database) -> None:
    """The next event in the target gets a number that none of the copied ones has."""
    source = opened_from(sqlite_database)
    with source.session_scope() as session:
        session.add(user := user_row("ada"))
        session.flush()
        session.execute(insert(Event), [an_event(user, id=7), an_event(user, id=41)])
    copied(source, target)
    with target.session_scope() as session:
        event = Event(**an_event(user))
        session.add(event)
        session.flush()
        assert event.id == 42


def an_event(user: User, **more: Any) -> dict[str, Any]:
    """Return the values of an event."""
    return {"user_id": user.id, "kind": "x", "subject_id": user.id, "data": {}, **more}


def test_what_comes_meanwhile_is_left_out_as_a_whole(source: Database, target: Database) -> None:
    """One snapshot: a user that is made during the copy is in none of the tables."""

    def make_another(what: str, done: int, _total: int) -> None:
        if (what, done) == ("copying users", 1):
            with source.session_scope() as session:
                session.add(user_row("late"))

    with source.session_scope() as session:
        session.add(user_row("early"))
    tables = {each.name: each.rows for each in copied(source, target, progress=make_another)}
    assert (tables["users"], tables["user_usage"]) == (1, 1)
    assert len(rows_of(source, Base.metadata.tables["users"])) == 2


def test_an_on_api_that_starts_meanwhile(
    sqlite_database: DatabaseMaker, opened_from: Open, target: Database
) -> None:
    """What it writes would be lost: the copy is given up before its commit."""
    source = opened_from(sqlite_database)

    def start(what: str, _done: int, _total: int) -> None:
        if what == "checking users":
            with source.session_scope() as session:
                session.add(Process(host="here", pid=4711, secret_versions=[]))

    with source.session_scope() as session:
        session.add(user_row("ada"))
    with pytest.raises(Conflict, match="process 4711 on here"):
        move(source, target, start)
    assert rows_of(target, Base.metadata.tables["users"]) == []


def test_a_target_with_rows(
    sqlite_database: DatabaseMaker, opened_from: Open, target: Database
) -> None:
    """Refused, naming the tables; what is there stays."""
    source = opened_from(sqlite_database)
    with target.session_scope() as session:
        session.add(user_row("theirs"))
    with pytest.raises(Conflict, match="users, user_usage"):
        copied(source, target)
    assert len(rows_of(target, Base.metadata.tables["users"])) == 1


@pytest.mark.parametrize("wrong", ["source", "target"])
@pytest.mark.parametrize(("revision", "cure"), [("0018", "upgrade"), ("f00", "Update on-api")])
def test_a_wrong_revision(
    sqlite_database: DatabaseMaker, opened_from: Open, wrong: str, revision: str, cure: str
) -> None:
    """Refused, naming the side and the cure."""
    sides = {"source": opened_from(sqlite_database), "target": opened_from(sqlite_database)}
    with sides[wrong].session_scope() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
    with pytest.raises(StartupError, match=f"{wrong} of the copy.*{cure}"):
        copied(sides["source"], sides["target"])


def test_an_interrupted_copy(
    sqlite_database: DatabaseMaker, opened_from: Open, target: Database
) -> None:
    """The target stays empty, and the next one fills it."""
    source = opened_from(sqlite_database)

    def interrupt(what: str, _done: int, _total: int) -> None:
        if what == "checking files":
            raise KeyboardInterrupt

    fill(source)
    with pytest.raises(KeyboardInterrupt):
        copied(source, target, progress=interrupt)
    assert all(rows_of(target, table) == [] for table in Base.metadata.sorted_tables)
    assert sum(each.rows for each in copied(source, target)) > 0


CHANGE_ON_SQLITE = """CREATE TRIGGER planted AFTER INSERT ON files
BEGIN UPDATE files SET {what} WHERE id = new.id; END"""
CHANGE_ON_POSTGRESQL = """CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE files SET {what} WHERE id = new.id; RETURN NULL; END $$;
CREATE TRIGGER planted AFTER INSERT ON files FOR EACH ROW EXECUTE FUNCTION planted()"""


@pytest.mark.parametrize("what", ["source_cid = NULL", "size = size - 1"])
def test_a_difference_is_found(
    sqlite_database: DatabaseMaker, opened_from: Open, target: Database, what: str
) -> None:
    """One value of one row is enough: the table is named, and nothing of the copy stays."""
    source = opened_from(sqlite_database)
    fill(source)
    change = CHANGE_ON_POSTGRESQL if target.is_postgresql else CHANGE_ON_SQLITE
    with target.session_scope() as session:
        session.connection().exec_driver_sql(change.format(what=what))
    with pytest.raises(Conflict, match="rows of files"):
        copied(source, target)
    assert rows_of(target, Base.metadata.tables["users"]) == []


def test_a_lost_row_is_found(sqlite_database: DatabaseMaker, opened_from: Open) -> None:
    """The counts tell."""
    source, target = opened_from(sqlite_database), opened_from(sqlite_database)
    fill(source)
    with target.session_scope() as session:
        session.execute(
            text(
                "CREATE TRIGGER planted AFTER INSERT ON shares "
                "BEGIN DELETE FROM shares WHERE id = new.id; END"
            )
        )
    with pytest.raises(Conflict, match=r"rows of shares.* 2 rows .* 0 with"):
        copied(source, target)


def test_a_row_that_the_target_cannot_take(
    sqlite_database: DatabaseMaker, postgres_database: DatabaseMaker, opened_from: Open
) -> None:
    """SQLite doesn't count characters, PostgreSQL does: the table is named, and not the value."""
    source = opened_from(sqlite_database)
    with source.session_scope() as session:
        session.add(user_row("much-too-long" * 20))
    with pytest.raises(Conflict, match=r"row of users.*too long") as caught:
        copied(source, opened_from(postgres_database))
    assert "much" not in caught.value.details


NODES = 2 * BATCH_ROWS + 1
TREES = MetaData(naming_convention=NAMING_CONVENTION)
"""Tables that refer to themselves and to one another."""
Table(
    "nodes",
    TREES,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("above", ForeignKey("nodes.id")),
    Column("tree", ForeignKey("trees.id")),
)
Table(
    "trees",
    TREES,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("root", ForeignKey("nodes.id")),
)


Table(
    "links",
    TREES,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("next", ForeignKey("links.id")),
)
TREES_ON_SQLITE = """CREATE TABLE trees (id INTEGER PRIMARY KEY, root REFERENCES nodes (id));
CREATE TABLE nodes (id INTEGER PRIMARY KEY, above INTEGER REFERENCES nodes (id),
    tree INTEGER REFERENCES trees (id));
CREATE TABLE links (id INTEGER PRIMARY KEY, next INTEGER REFERENCES links (id))"""


@pytest.fixture
def trees(source: Database, target: Database) -> None:
    """Nodes and links in the source, each of which refers to the next one, also in another batch.

    They are in a circle of two tables, and in a table by itself.
    """
    for database in (source, target):
        with database.session_scope() as session:
            if database.is_postgresql:
                TREES.create_all(session.connection())
            else:
                # SQLAlchemy leaves a circle's foreign keys out on SQLite.
                for statement in TREES_ON_SQLITE.split(";"):
                    session.execute(text(statement))
    with source.session_scope() as session:
        ids = [{"id": number} for number in range(1, NODES + 1)]
        session.execute(insert(TREES.tables["nodes"]), ids)
        session.execute(insert(TREES.tables["links"]), ids)
        session.execute(text("INSERT INTO trees (id, root) VALUES (1, 2)"))
        circle = text("UPDATE nodes SET above = 1 + id % :nodes, tree = 1")
        session.execute(circle, {"nodes": NODES})
        session.execute(text("UPDATE links SET next = id + 1 WHERE id < :last"), {"last": NODES})


@pytest.mark.usefixtures("trees")
def test_tables_that_refer_to_themselves_and_in_circles(source: Database, target: Database) -> None:
    """Copied in whatever order; afterwards each row is checked as before."""
    copied(source, target, metadata=TREES)
    nodes = TREES.tables["nodes"]
    links = [*((n, n + 1) for n in range(1, NODES)), (NODES, None)]
    assert rows_of(target, TREES.tables["links"]) == links
    assert rows_of(target, nodes) == [(n, 1 + n % NODES, 1) for n in range(1, NODES + 1)]
    with pytest.raises(IntegrityError), target.engine.begin() as connection:
        connection.execute(insert(nodes), {"id": 0, "above": -1})


@pytest.mark.usefixtures("trees")
def test_a_row_that_refers_to_nothing(source: Database, target: Database) -> None:
    """As a damaged source may have it: refused, naming the table."""
    damage = "INSERT INTO nodes (id, above) VALUES (0, -1)"
    if (file := source.file) is not None:
        with closing(sqlite3.connect(file)) as connection, connection:  # checks no foreign keys
            connection.execute(damage)
    else:
        with source.session_scope() as session:
            session.execute(text("ALTER TABLE nodes DROP CONSTRAINT fk_nodes_above_nodes"))
            session.execute(text(damage))
    with pytest.raises(Conflict, match="row of nodes refers"):
        copied(source, target, metadata=TREES)
    assert rows_of(target, TREES.tables["trees"]) == []
