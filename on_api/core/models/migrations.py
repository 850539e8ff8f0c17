"""Migration of the database to the revision that this code needs, or to another one: Alembic's
commands without its `alembic.ini`, which an installed package does not have (ADR 0033)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic import command
from on_api.core.errors import StartupError
from on_api.core.models.database import Database
from on_api.core.models.database_errors import cause_of
from on_api.core.models.downgrades import OVERRIDE
from on_api.core.models.revisions import MIGRATIONS

# One migration at a time on PostgreSQL: others wait for it, and then find nothing to do.
_ADVISORY_LOCK = 0x6F6E6170


def upgrade(database: Database, revision: str = "head") -> None:
    """Run `alembic upgrade` on this database, once even if several processes begin together. Raises
    `StartupError` when it fails; then nothing was changed."""
    with _connection(database, alone=True) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(database: Database, revision: str, *, allow_data_loss: bool) -> None:
    """Run `alembic downgrade` on this database. Raises `StartupError` when it fails, or would
    destroy data without `allow_data_loss`; then nothing was changed."""
    with _connection(database, alone=True) as connection:
        command.downgrade(_config(connection, allow_data_loss=allow_data_loss), revision)


def check(database: Database) -> None:
    """Compare the database with the models. Raises `StartupError` when they differ, or when it is
    at another revision."""
    with _connection(database) as connection:
        command.check(_config(connection))


def print_current(database: Database) -> None:
    """Print the database's revision to standard output."""
    with _connection(database) as connection:
        command.current(_config(connection))


def print_history() -> None:
    """Print all revisions, the newest first, to standard output. Needs no database."""
    command.history(_config())


def print_upgrade(revision: str) -> None:
    """Print the SQL of an upgrade to standard output. Needs no database; the settings say for which
    kind it is. Raises `StartupError` for an unknown revision."""
    with _as_startup_errors():
        command.upgrade(_config(), revision, sql=True)


def print_downgrade(revisions: str, *, allow_data_loss: bool) -> None:
    """Print the SQL of a downgrade, `FROM:TO`, to standard output. Needs no database. Raises
    `StartupError` for unknown revisions."""
    with _as_startup_errors():
        command.downgrade(_config(allow_data_loss=allow_data_loss), revisions, sql=True)


def _config(connection: Connection | None = None, *, allow_data_loss: bool = False) -> Config:
    given = [f"{OVERRIDE}=true"] if allow_data_loss else []
    config = Config(cmd_opts=Namespace(x=given))
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


@contextmanager
def _connection(database: Database, *, alone: bool = False) -> Iterator[Connection]:
    with _as_startup_errors(), database.engine.connect() as connection:
        locks = alone and database.is_postgresql
        if locks:
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})")
            connection.commit()
        yield connection
        if locks:  # after a failure it goes with the connection
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})")
            connection.commit()


@contextmanager
def _as_startup_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise StartupError(str(error)) from error
    except DBAPIError as error:
        raise StartupError(
            f"The database refused it, and nothing was changed: {cause_of(error)}"
        ) from error
