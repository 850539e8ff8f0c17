"""Declarative base, column types, engine, and `session_scope`, the only place that commits.

Works alike on PostgreSQL (psycopg2) and SQLite. Knows nothing of the tables built on it.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    MetaData,
    Table,
    bindparam,
    create_engine,
    event,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from on_api.core.errors import Conflict, DatabaseUnavailable, QueryTooSlow
from on_api.core.models.database_errors import (
    FULL,
    cause_of,
    distrust_confusion,
    explained,
    has_timed_out,
    is_race,
)
from on_api.core.models.json_contains import json_contains
from on_api.core.models.watchdog import Watchdog
from on_api.core.models.writers_queue import WritersQueue
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

ANSWER_MARGIN_SECONDS = 5.0
"""Seconds that PostgreSQL's answer may take beyond `statement_timeout`."""

_SQLITE_BEGIN = "on_api_sqlite_begin"
_SQLITE_WRITES = "BEGIN IMMEDIATE"
_HAS_TURN = "on_api_has_the_writers_turn"

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond. Naive values are refused; those read are aware."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC for storage. Raises `ValueError` for a naive value."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone can't be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


JSONDocument = JSON(none_as_null=True).with_variant(
    postgresql.JSONB(none_as_null=True), "postgresql"
)
"""A JSON column: JSONB on PostgreSQL, text on SQLite; None is SQL's NULL, not JSON's."""


class Base(DeclarativeBase):
    """Base of every table. The names of constraints follow one convention so that Alembic can
    drop them."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own class attribute)
        datetime: UTCDateTime,
        dict[str, Any]: JSONDocument,
        dict[str, str]: JSONDocument,
        list[str]: JSONDocument,
    }


def utc_now() -> datetime:
    """Return the present moment by this process's clock, aware, in UTC. Moments that another
    process compares come from the database's clock: `database_now`."""
    return datetime.now(UTC)


class _DatabaseMoment(FunctionElement[datetime]):
    """SQL for the moment so many seconds from now (its one argument), by the database's clock."""

    name = "database_moment"
    inherit_cache = True
    type = UTCDateTime()


@compiles(_DatabaseMoment, "postgresql")
def _moment_on_postgresql(element: _DatabaseMoment, compiler: SQLCompiler, **more: Any) -> str:
    # The statement's start: the transaction's would be too early, and for `clock_timestamp()`,
    # which changes while a statement runs, no index is used.
    seconds = compiler.process(element.clauses, **more)
    return f"(statement_timestamp() + make_interval(secs => {seconds}))"


@compiles(_DatabaseMoment, "sqlite")
def _moment_on_sqlite(element: _DatabaseMoment, compiler: SQLCompiler, **more: Any) -> str:
    seconds = compiler.process(element.clauses, **more)
    # As the column is stored; SQLite knows milliseconds.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%.3f seconds', {seconds}))"


def database_now(after: timedelta = timedelta()) -> _DatabaseMoment:
    """Return SQL for the moment `after` from now (negative: before it) by the database's clock.

    Clocks of machines differ: a moment that one process writes and another compares with the
    present is written and compared by this.
    """
    return _DatabaseMoment(bindparam(None, after.total_seconds(), Float, unique=True))


def moment_of(session: Session) -> datetime:
    """Return the present moment by the database's clock, for comparisons in Python."""
    return session.execute(select(database_now())).scalar_one()


Entity = TypeVar("Entity", bound=Base)


class Database:
    """One engine and its sessions. Created once per process; `dispose` closes it."""

    def __init__(self, settings: Settings) -> None:
        # Longer than the server's own limit, which says more.
        self._watchdog = Watchdog(settings.database.statement_timeout + ANSWER_MARGIN_SECONDS)
        self.most_connections = settings.database.pool_size + settings.database.max_overflow
        self.engine = _create_engine(settings, self._watchdog)
        self.disk_was_full = False  # readiness unsets it
        self._writers = WritersQueue()
        if not self.is_postgresql:
            _queue_sqlite_writers(self.engine, self._writers, settings.database.lock_timeout)
        reading = self.engine.execution_options(
            postgresql_readonly=True, **{_SQLITE_BEGIN: "BEGIN DEFERRED"}
        )
        self._writer = sessionmaker(self.engine, expire_on_commit=False)
        self._reader = sessionmaker(reading, expire_on_commit=False)

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings) -> Iterator[Self]:
        """Open a database while the block runs."""
        database = cls(settings)
        try:
            yield database
        finally:
            database.dispose()

    @property
    def is_postgresql(self) -> bool:
        """True if this is PostgreSQL, which several processes may share."""
        return self.engine.dialect.name == "postgresql"

    @property
    def file(self) -> Path | None:
        """Path of SQLite's file; None for PostgreSQL."""
        name = self.engine.url.database
        return None if self.is_postgresql or not name else Path(name)

    @contextmanager
    def session_scope(self, *, write: bool = True) -> Iterator[Session]:
        """Run the block in one transaction: committed if it ends well, rolled back otherwise.

        `write=False` reads one snapshot and doesn't wait for SQLite's single writer (PostgreSQL
        refuses writes in it). Raises `Conflict` for a lost race, `DatabaseUnavailable` when the
        database can't be reached or is too busy, `QueryTooSlow` when it ended a statement after
        `statement_timeout`.
        """
        try:
            with (self._writer if write else self._reader).begin() as session:
                yield session
        except IntegrityError as error:
            if not is_race(error):
                raise
            raise Conflict("Someone else made a change at the same time; try again.") from error
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            details = self._report(error)
            if has_timed_out(error):
                raise QueryTooSlow from error
            raise DatabaseUnavailable(details) from error
        except UnicodeDecodeError as error:
            # psycopg2 fails so on an error message that is no text; no code of ours decodes here.
            logger.warning("the database sent an error message that is not valid text")
            raise DatabaseUnavailable from error
        except DBAPIError as error:
            if explained(error) is None and not error.connection_invalidated:
                raise
            raise DatabaseUnavailable(self._report(error)) from error

    def on_commit(
        self, before: Callable[[Session], None], after: Callable[[Session], None]
    ) -> None:
        """Call these before and after every commit of a writing session. An exception of `before`
        prevents the commit; `after` may not use the session."""
        event.listen(self._writer, "before_commit", before)
        event.listen(self._writer, "after_commit", after)

    def _report(self, error: Exception) -> str | None:
        """Log the failure. Returns the database's own defect (`explained`), or None."""
        logger.warning("the database failed: %s", cause_of(error))
        if (details := explained(error)) == FULL:
            self.disk_was_full = True
        return details

    def connections_in_use(self) -> int:
        """Return the number of connections that are checked out of the pool."""
        pool = self.engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def writers_waiting(self) -> int:
        """Return the number of transactions in this process's queue for SQLite's writer."""
        return self._writers.waiting

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        self._watchdog.stop()


def dialect_of(session: Session) -> str:
    """Return the dialect, `postgresql` or `sqlite`, by which statements differ."""
    return session.get_bind().dialect.name


def table_of(model: type[Base]) -> Table:
    """Return a model's table. Raises `TypeError` if it is mapped to something else."""
    table = model.__table__
    if not isinstance(table, Table):
        raise TypeError(f"{model.__name__} is no plain table")
    return table


def insert_into(dialect: str, target: Table | type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return the dialect's own `INSERT`, which has `ON CONFLICT`."""
    return (postgresql.insert if dialect == "postgresql" else sqlite.insert)(target)


def insert_unless_there(session: Session, table: type[Base], **values: object) -> None:
    """Insert a row unless it exists. If two transactions insert it at once, neither fails."""
    insert = insert_into(dialect_of(session), table_of(table))
    session.execute(insert.values(**values).on_conflict_do_nothing())


def insert_or_lock(
    session: Session, table: type[Entity], unique: Sequence[str], **values: object
) -> Entity:
    """Return the row that is unique in these columns, locked: inserted from `values` or existing.

    One statement: after `insert_unless_there`, a select can miss a row that was deleted.
    """
    statement = insert_into(dialect_of(session), table).values(**values)
    # Updated to its own value: `DO NOTHING` would neither lock nor return the row.
    same = {unique[-1]: statement.excluded[unique[-1]]}
    return session.scalars(
        statement.on_conflict_do_update(index_elements=unique, set_=same).returning(table),
        execution_options={"populate_existing": True},
    ).one()


def new_id() -> uuid.UUID:
    """Return a random id for a row."""
    return uuid.uuid4()


def _create_engine(settings: Settings, watchdog: Watchdog) -> Engine:
    url = make_url(settings.sqlalchemy_url)
    options = settings.database
    connect_args: dict[str, Any]
    if url.get_backend_name() == "postgresql":
        milliseconds = {
            "statement_timeout": options.statement_timeout,
            "lock_timeout": options.lock_timeout,
            "idle_in_transaction_session_timeout": 2 * options.statement_timeout,
        }
        connect_args = {
            "connect_timeout": options.connect_timeout,
            "application_name": "on-api",
            "connection_factory": watchdog.connection_factory(),
            "options": " ".join(
                f"-c {name}={round(value * 1000)}" for name, value in milliseconds.items()
            ),
            "keepalives_idle": 30,
            "tcp_user_timeout": round(options.statement_timeout * 1000),
        }
    else:
        connect_args = {"timeout": options.lock_timeout}
    engine = create_engine(
        url,
        connect_args=connect_args,
        pool_size=options.pool_size,
        max_overflow=options.max_overflow,
        pool_timeout=options.pool_timeout,
        pool_pre_ping=url.get_backend_name() == "postgresql",  # a file is always there
        pool_use_lifo=True,
        # Values in error messages would reach the logs: hashes, names, e-mail addresses.
        hide_parameters=True,
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "handle_error", distrust_confusion)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own BEGIN comes too late and is always deferred: `_queue_sqlite_writers` begins.
    connection.isolation_level = None
    # Functions that PostgreSQL has under these names; SQLite's own `lower` knows ASCII only.
    connection.create_function("json_contains", 2, json_contains, deterministic=True)
    connection.create_function("lower", 1, _lower, deterministic=True)
    connection.create_function("strpos", 2, _strpos, deterministic=True)
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a 201 survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _strpos(text: str | None, part: str) -> int | None:
    return None if text is None else text.find(part) + 1


def _queue_sqlite_writers(engine: Engine, queue: WritersQueue, seconds: float) -> None:
    """Begin each transaction in its own mode, and this process's writers one after the other.

    A turn ends when its connection returns to the pool, whatever became of the transaction.
    """

    def begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer fails at once when another one wrote
        # meanwhile; an immediate one waits for the writer's place at its start instead.
        kind = connection.get_execution_options().get(_SQLITE_BEGIN, _SQLITE_WRITES)
        if kind == _SQLITE_WRITES and _HAS_TURN not in connection.info:
            if not queue.enter(seconds):
                logger.warning("the database is overloaded: %d writers are waiting", queue.waiting)
                raise DatabaseUnavailable
            connection.info[_HAS_TURN] = True
        connection.exec_driver_sql(kind)

    def give_back(_connection: object, record: ConnectionPoolEntry) -> None:
        if record.info.pop(_HAS_TURN, False):
            queue.leave()

    event.listen(engine, "begin", begin)
    event.listen(engine, "checkin", give_back)
