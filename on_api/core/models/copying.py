"""Copy of every row from one database into another, of either engine, checked at its end.

Walks the tables' metadata and knows nothing of what the rows mean: a new table is copied without a
change here.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    Connection,
    ForeignKeyConstraint,
    MetaData,
    Row,
    Table,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.schema import sort_tables_and_constraints

from on_api.core.errors import Conflict, StartupError
from on_api.core.models.database import Base, Database
from on_api.core.models.database_errors import cause_of
from on_api.core.models.revisions import check_revision

BATCH_ROWS = 200
"""Rows that are in memory at once. Few, since a kept answer may have some hundred kilobytes."""

CopyProgress = Callable[[str, int, int], None]
"""Function that is told what is being done (`copying files`, then `checking files`), the rows done
and all rows of that table."""

_ALIKE = frozenset({bool, int, str, type(None)})
"""Types whose values every engine gives back alike; most values are of these."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """A table, its number of rows, and a checksum over all their values in hex, which depends
    neither on the rows' order nor on the database's engine."""

    name: str
    rows: int
    checksum: str


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """Open a read-only transaction that sees the database as it is at its first statement, for the
    source of `copy_rows`. Raises what `Database.session_scope` raises."""
    # SQLite's read transactions are such snapshots by themselves.
    options = {"isolation_level": "REPEATABLE READ"} if database.is_postgresql else {}
    with database.session_scope(write=False) as session:
        yield session.connection(execution_options=options)


def copy_rows(
    source: Connection,
    target: Connection,
    progress: CopyProgress | None = None,
    *,
    metadata: MetaData = Base.metadata,
) -> list[CopiedTable]:
    """Copy every table's rows into an empty database, read them back, and return what was copied.

    `source` is in a transaction that sees one snapshot (see `snapshot`), `target` in a writing one,
    which the caller must roll back after an error. Raises `StartupError` if one of them is not at
    this code's revision, and `Conflict` if the target has rows, can't take a row, or gives back
    other rows than the source has.
    """
    check_side(source, "source")
    check_side(target, "target")
    tables, entangled = _in_order(metadata)
    for connection in (source, target):
        _lift_time_limits(connection)
    _lock(target, tables)
    _check_is_empty(target, tables)
    report = progress or _tell_nobody
    with _checked_at_the_end(target, entangled):
        copied = [_copy(source, target, table, report) for table in tables]
    for table, expected in zip(tables, copied, strict=True):
        _compare(target, table, expected, report)
        _continue_numbers(target, table)
    return copied


def check_side(connection: Connection, side: str) -> None:
    """Raise `StartupError` unless the `source` or `target` (`side`) is at this code's revision."""
    try:
        check_revision(connection)
    except StartupError as error:
        raise StartupError(f"The {side} of the copy can't be used. {error.details}") from None


def summed(
    connection: Connection, table: Table, report: Callable[[int], None] | None = None
) -> CopiedTable:
    """Read a table and return its number of rows and their checksum. `report` gets the number of
    rows read so far."""
    total = _Sum(table)
    for rows in _batches(connection, table):
        total.add(rows)
        if report is not None:
            report(total.rows)
    return total.result()


class _Sum:
    """Sum of the rows' SHA-256 modulo 2**256, so that their order doesn't matter."""

    def __init__(self, table: Table) -> None:
        self._name = table.name
        self._sum = 0
        self.rows = 0

    def add(self, rows: Sequence[Row[Any]]) -> None:
        """Add rows."""
        for row in rows:
            text = json.dumps([_normal(value) for value in row], sort_keys=True)
            self._sum += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        self.rows += len(rows)

    def result(self) -> CopiedTable:
        """Return the table as its rows so far."""
        return CopiedTable(self._name, self.rows, f"{self._sum % 2**256:064x}")


def _normal(value: object) -> object:
    """Return a value as what JSON can write, alike for every engine."""
    if type(value) in _ALIKE:
        return value
    if isinstance(value, datetime):
        return (value - _EPOCH) // _MICROSECOND
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _normal(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_normal(each) for each in value]
    # JSONB keeps numbers as decimals: 1e300 comes back as the integer 10**300.
    if isinstance(value, float) and value.is_integer():
        return int(Decimal(repr(value)))
    if isinstance(value, Decimal):
        is_whole = value == value.to_integral_value()
        return int(value) if is_whole else f"{value:f}".rstrip("0")
    return value


def _in_order(metadata: MetaData) -> tuple[list[Table], list[ForeignKeyConstraint]]:
    """Return the tables, each after those that it refers to, and the foreign keys that no order
    satisfies: in a cycle, or from a table to itself."""
    ordered: list[tuple[Table | None, set[ForeignKeyConstraint]]]
    ordered = sort_tables_and_constraints(metadata.tables.values())  # type: ignore[no-untyped-call]
    tables = [table for table, _ in ordered if table is not None]
    in_cycles = [key for table, keys in ordered if table is None for key in keys]
    to_themselves = [
        key
        for table in tables
        for key in table.foreign_key_constraints
        if key.referred_table is table
    ]
    return tables, list(dict.fromkeys([*in_cycles, *to_themselves]))


def _tell_nobody(_what: str, _done: int, _total: int) -> None:
    """Report to nobody."""


def _lift_time_limits(connection: Connection) -> None:
    """End the limits that are meant for requests, until the end of this transaction: each side is
    idle while the other one works."""
    if connection.dialect.name == "postgresql":
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {name} = 0")


def _lock(target: Connection, tables: Sequence[Table]) -> None:
    """Keep others from writing into the target; on SQLite its writing transaction does."""
    if target.dialect.name == "postgresql":
        named = ", ".join(map(target.dialect.identifier_preparer.format_table, tables))
        target.exec_driver_sql(f"LOCK TABLE {named} IN EXCLUSIVE MODE")


def _check_is_empty(target: Connection, tables: Sequence[Table]) -> None:
    filled = [
        table.name
        for table in tables
        if target.scalar(select(literal(1)).select_from(table).limit(1))
    ]
    if filled:
        raise Conflict(
            f"The target is not empty: there are rows in {', '.join(filled)}. Copy into a new "
            "database, before on-api is started on it (its first start makes an administrator)."
        )


def _batches(connection: Connection, table: Table) -> Iterator[Sequence[Row[Any]]]:
    options = {"stream_results": True, "yield_per": BATCH_ROWS}
    return connection.execute(select(table), execution_options=options).partitions()


def _copy(
    source: Connection, target: Connection, table: Table, report: CopyProgress
) -> CopiedTable:
    count = source.scalar(select(func.count()).select_from(table)) or 0
    names = table.columns.keys()
    total = _Sum(table)
    for rows in _batches(source, table):
        values = [dict(zip(names, row, strict=True)) for row in rows]
        try:
            target.execute(insert(table), values)
        except (DataError, IntegrityError) as error:
            raise Conflict(
                f"The target can't take a row of {table.name}: {cause_of(error)}. Mend it in the "
                "source, and copy again."
            ) from None
        total.add(rows)
        report(f"copying {table.name}", total.rows, count)
    return total.result()


def _compare(target: Connection, table: Table, expected: CopiedTable, report: CopyProgress) -> None:
    what = f"checking {table.name}"
    written = summed(target, table, lambda rows: report(what, rows, expected.rows))
    if written != expected:
        raise Conflict(
            f"The rows of {table.name} have not arrived as they were: {expected.rows} rows with "
            f"the checksum {expected.checksum} were copied, {written.rows} with "
            f"{written.checksum} were read back. Look for triggers or defaults in the target that "
            "on-api has not made, and copy again into a new database."
        )


def _continue_numbers(target: Connection, table: Table) -> None:
    """Let PostgreSQL's own numbers go on after the highest one that was copied."""
    column = table.autoincrement_column
    if column is None or target.dialect.name != "postgresql":
        return
    last = target.scalar(select(func.max(column)))
    if last is not None:
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        target.execute(select(func.setval(sequence, last)))


@contextmanager
def _checked_at_the_end(
    target: Connection, constraints: Sequence[ForeignKeyConstraint]
) -> Iterator[None]:
    """Check foreign keys that no order of the tables satisfies at the block's end, not at each
    row. Raises `Conflict` if a row refers to one that isn't there."""
    if not constraints:
        yield
    elif target.dialect.name == "postgresql":
        yield from _deferred_on_postgresql(target, constraints)
    else:
        # Until the end of this transaction, whose commit would fail in other words.
        target.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        yield
        for name, *_ in target.exec_driver_sql("SELECT * FROM pragma_foreign_key_check LIMIT 1"):
            raise _dangling(name)


def _deferred_on_postgresql(
    target: Connection, constraints: Sequence[ForeignKeyConstraint]
) -> Iterator[None]:
    preparer = target.dialect.identifier_preparer
    altered = [
        f"ALTER TABLE {preparer.format_table(constraint.table)} "
        f"ALTER CONSTRAINT {preparer.format_constraint(constraint)}"
        for constraint in constraints
        if not constraint.deferrable
    ]
    for constraint in altered:
        target.exec_driver_sql(f"{constraint} DEFERRABLE")
    target.exec_driver_sql("SET CONSTRAINTS ALL DEFERRED")
    yield
    try:
        target.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    except IntegrityError as error:
        raise _dangling(error.orig.diag.table_name) from None  # type: ignore[union-attr]
    for constraint in altered:
        target.exec_driver_sql(f"{constraint} NOT DEFERRABLE")


def _dangling(name: str) -> Conflict:
    return Conflict(
        f"A row of {name} refers to one that the source doesn't have. Mend it there (`on-api fsck` "
        "may tell more), and copy again."
    )
