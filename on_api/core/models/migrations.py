"""Migration of the database to the revision that this code needs."""

from __future__ import annotations

from alembic.config import Config

from alembic import command
from on_api.core.models.database import Database
from on_api.core.models.revisions import PROJECT

# One migration at a time on PostgreSQL: others wait for it, and then find nothing to do.
_ADVISORY_LOCK = 0x6F6E6170


def upgrade(database: Database) -> None:
    """Run `alembic upgrade head` on this database, once even if several processes begin
    together."""
    with database.engine.connect() as connection:
        if database.is_postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})")
            connection.commit()
        config = Config(PROJECT / "alembic.ini")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.is_postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})")
            connection.commit()
