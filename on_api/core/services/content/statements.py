"""Statements of the recorder and of bundles, built once: building takes as long as sending. Each
takes rows by the hundred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection, CursorResult, bindparam, exists, select

from on_api.core.models import (
    Content,
    Event,
    File,
    Holding,
    Lease,
    Maintenance,
)
from on_api.core.models.content import PINNED
from on_api.core.models.database import Base, database_now, table_of
from on_api.core.services.content.maintenance import GARBAGE


@cache
def keeping() -> Any:
    """Build the statement that selects those of `cids` that on-api keeps already."""
    table = table_of(Content)
    return select(table.c.cid).where(
        table.c.cid.in_(bindparam("cids", expanding=True)), table.c.state == PINNED
    )


@cache
def holding_on() -> Any:
    """Build the statement that finds a lease (`id`, `token`), locks it against deletion to the
    transaction's end, and tells whether garbage is collected."""
    lease, maintenance = table_of(Lease), table_of(Maintenance)
    live = (maintenance.c.kind == GARBAGE) & (maintenance.c.lease_until > database_now())
    return (
        select(exists().where(live).label("collecting"))
        .select_from(lease)
        .where(lease.c.id == bindparam("id"), lease.c.token == bindparam("token"))
        .with_for_update(of=lease, read=True, key_share=True)
    )


class ManyRows:
    """`INSERT` of many rows in one statement, whose values are passed to the driver as it takes
    them.

    SQLAlchemy's own processes each value of each row separately, which takes four times as long as
    the database does. `then` follows the rows, in SQL that both databases understand.
    """

    def __init__(self, model: type[Base], columns: Sequence[str], then: str = "") -> None:
        table = table_of(model)
        self.columns = tuple(columns)
        self._columns = [table.c[name] for name in columns]
        names = ", ".join(column.name for column in self._columns)
        # Names of ours; every value is a parameter.
        self._head = f"INSERT INTO {table.name} ({names}) VALUES "  # noqa: S608
        self._then = then
        self._readers: dict[str, Sequence[Callable[[Any], Any] | None]] = {}

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> CursorResult[Any]:
        """Insert rows (at least one), values in the order of `columns`. The result's values are as
        the driver returns them."""
        dialect = connection.dialect
        processors = self._readers.get(dialect.name)
        if processors is None:
            processors = [
                c.type.dialect_impl(dialect).bind_processor(dialect) for c in self._columns
            ]
            self._readers[dialect.name] = processors
        mark = "%s" if dialect.name == "postgresql" else "?"
        row = f"({', '.join([mark] * len(processors))})"
        statement = f"{self._head}{', '.join([row] * len(rows))} {self._then}"
        columns = (
            column if process is None else map(process, column)
            for process, column in zip(processors, zip(*rows, strict=True), strict=True)
        )
        values = tuple(chain.from_iterable(zip(*columns, strict=True)))
        return connection.exec_driver_sql(statement, values)


# An update that changes nothing: `DO NOTHING` would neither lock nor return the row.
LOCKED_CONTENTS = ManyRows(
    Content,
    ("cid", "state", "generation", "pinned_too", "pin_root_id", "dag_size", "created_at"),
    "ON CONFLICT (cid) DO UPDATE SET dag_size = contents.dag_size"
    " RETURNING cid, state, generation, pin_root_id, dag_size, unreferenced_at",
)
"""Inserts contents or finds them, in the order given, and locks each."""

COUNTED_HOLDINGS = ManyRows(
    Holding,
    ("user_id", "cid", "reference_count", "charged_bytes"),
    "ON CONFLICT (user_id, cid) DO UPDATE"
    " SET reference_count = holdings.reference_count + excluded.reference_count"
    " RETURNING user_id, cid, reference_count, charged_bytes",
)
"""Inserts holdings or adds to their counts."""

FILE_COLUMNS = tuple(column.key for column in table_of(File).columns)
NEW_FILES = ManyRows(File, FILE_COLUMNS)
NEW_EVENTS = ManyRows(Event, ("user_id", "kind", "subject_id", "data", "created_at"))
