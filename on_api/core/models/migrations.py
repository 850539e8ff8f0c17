"""The database's structure: which revision it has, which one this code needs, and bringing it
there."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

import on_api
from alembic import command
from on_api.core.errors import StartupError
from on_api.core.models.database import Database

PROJECT = Path(on_api.__file__).resolve().parent.parent

# One migration at a time on PostgreSQL: others wait for it, and then find nothing to do.
_ADVISORY_LOCK = 0x6F6E6170


@cache
def needed_revision() -> str:
    """The newest revision in `alembic/versions`."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise StartupError(f"There are no migrations in {PROJECT / 'alembic'}.")
    return head


def present_revision(connection: Connection) -> str | None:
    """The revision of the database, or None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def check_revision(connection: Connection) -> None:
    """Raise `StartupError` with the cure unless the database has just the structure that this
    code needs."""
    needed, present = needed_revision(), present_revision(connection)
    if present == needed:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if present is None or present in known:
        raise StartupError(
            f"The database is behind (at {present or 'nothing'}, needed {needed}): "
            "run `alembic upgrade head` (or `make migrate`)."
        )
    raise StartupError(
        f"The database is at revision {present}, which this on-api doesn't know: it belongs to "
        "a newer one. Update on-api, or downgrade the database with the newer one."
    )


def upgrade(database: Database) -> None:
    """`alembic upgrade head` on this database, once even if several processes begin together."""
    with database.engine.connect() as connection:
        if database.is_postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})")
            connection.commit()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.is_postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})")
            connection.commit()


def _config() -> Config:
    return Config(PROJECT / "alembic.ini")
