"""Guard against downgrades that would destroy data.

A revision that drops a table or a column names it in `refuse_loss`, whose check comes before the
revision's own statements and in their transaction. `alembic -x allow-data-loss=true downgrade …`
overrides it, as does `on-api db downgrade --allow-data-loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alembic.util import CommandError
from sqlalchemy import Connection, text

from alembic import context, op

OVERRIDE = "allow-data-loss"
_POSTGRESQL_GUARD = """DO $guard$ BEGIN
IF EXISTS (SELECT 1 FROM {table} WHERE {where}) THEN RAISE EXCEPTION '{words}'; END IF;
END $guard$"""
_SQLITE_GUARD = (
    'CREATE TEMP TABLE {guard} (row_id INTEGER, CONSTRAINT "{words}" CHECK (row_id IS NULL))',
    "INSERT INTO {guard} SELECT 1 WHERE EXISTS (SELECT 1 FROM {table} WHERE {where})",
    "DROP TABLE {guard}",
)


@dataclass(frozen=True, slots=True)
class Loss:
    """A table or `table.column` that a downgrade drops. `where` is an SQL condition for the rows
    that lose data by it; None means all rows of a table, or those that have a value in the
    column."""

    name: str
    where: str | None = None

    @property
    def table(self) -> str:
        """Name of the table that is searched for such rows."""
        return self.name.partition(".")[0]

    @property
    def condition(self) -> str:
        """Condition for the rows that lose data, in SQL of both databases."""
        column = self.name.partition(".")[2]
        return self.where or (f"{column} IS NOT NULL" if column else "1 = 1")


def refuse_loss(revision: str, *losses: str | Loss) -> None:
    """Raise `CommandError` if the downgrade of a revision would destroy any row or value.

    Offline it writes SQL that fails there, before anything was dropped.
    """
    allowed = context.get_x_argument(as_dictionary=True).get(OVERRIDE, "")
    if str(allowed).lower() in {"1", "true", "yes"}:
        return
    named = [Loss(loss) if isinstance(loss, str) else loss for loss in losses]
    if context.is_offline_mode():
        _write_guards(revision, named)
        return
    found = list(_counted(op.get_bind(), named))
    if found:
        raise CommandError(
            f"Downgrading revision {revision} would permanently destroy data:"
            f" {', '.join(found)}. Nothing was changed. Keep this revision, or make a backup"
            f" and confirm the loss: alembic -x {OVERRIDE}=true downgrade …"
            f" (or on-api db downgrade --{OVERRIDE} …)"
        )


def _counted(connection: Connection, losses: list[Loss]) -> Iterator[str]:
    for loss in losses:
        if connection.dialect.name == "postgresql":
            # The downgrade takes this lock anyway; taken now, no row is added after the count.
            connection.execute(text(f"LOCK TABLE {loss.table} IN ACCESS EXCLUSIVE MODE"))
        counting = f"SELECT count(*) FROM {loss.table} WHERE {loss.condition}"  # noqa: S608
        count = connection.execute(text(counting)).scalar_one()
        if count:
            yield f"{loss.name} ({count} {'row' if count == 1 else 'rows'})"


def _write_guards(revision: str, losses: list[Loss]) -> None:
    migration = op.get_context()
    is_postgresql = migration.dialect.name == "postgresql"
    if not is_postgresql:
        # For the sqlite3 shell, which otherwise continues after an error.
        migration.impl.static_output(".bail on\n")
    for loss in losses:
        words = {
            "words": f"revision {revision} has data in {loss.name}, which would be destroyed: see"
            f" -x {OVERRIDE}=true",
            "guard": f"keeps_data_of_{revision}",
            "table": loss.table,
            "where": loss.condition,
        }
        for statement in (_POSTGRESQL_GUARD,) if is_postgresql else _SQLITE_GUARD:
            op.execute(statement.format(**words))
