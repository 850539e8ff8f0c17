"""How Alembic reaches on-api's database: the URL and the tables come from on-api itself.

`alembic upgrade head` from the project's root needs nothing set; `alembic upgrade head --sql` needs
no database. Another URL for one command: `alembic -x url=postgresql+psycopg2://… upgrade head`.
"""

from __future__ import annotations

from logging import getLogger
from logging.config import fileConfig
from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from pydantic import SecretStr
from sqlalchemy import JSON, Connection, text
from sqlalchemy.engine import make_url

from alembic import context
from on_api.core.errors import StartupError
from on_api.core.models import Base, Database
from on_api.core.models.database import UTCDateTime
from on_api.core.settings import Settings
from on_api.server.process import load_settings as read_settings

LOCK_TIMEOUT = "10s"
"""A migration that waits longer for a table gives up rather than queue everyone else behind it."""


def render_item(kind: str, item: object, autogen: AutogenContext) -> str | Literal[False]:
    """Write our own column types as SQLAlchemy's: a revision must not change when our code does."""
    if kind == "type" and isinstance(item, UTCDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        autogen.imports.add("from sqlalchemy.dialects import postgresql")
        return "sa.JSON().with_variant(postgresql.JSONB(), 'postgresql')"
    return False


def load_settings() -> Settings:
    """on-api's settings, with the URL of `-x url=` when it is given. Raises `CommandError`, which
    Alembic prints as one line, naming each wrong variable and never its value."""
    url = context.get_x_argument(as_dictionary=True).get("url")
    try:
        return read_settings(database_url=SecretStr(url)) if url else read_settings()
    except StartupError as error:
        raise CommandError(error.details) from None


def configure(settings: Settings, connection: Connection | None = None) -> None:
    """Set the migration's context for one connection, or for SQL text without one."""
    options: dict[str, Any] = {
        "target_metadata": Base.metadata,
        # SQLite too: `Database` begins its transactions itself, so a killed migration leaves
        # nothing.
        "transactional_ddl": True,
        "render_item": render_item,
        "compare_type": True,
        "compare_server_default": True,
    }
    if connection is None:
        dialect = make_url(settings.sqlalchemy_url).get_backend_name()
        context.configure(
            dialect_name=dialect,
            literal_binds=True,
            dialect_opts={"paramstyle": "named"},
            **options,
        )
    else:
        context.configure(connection=connection, **options)


def migrate(connection: Connection, settings: Settings) -> None:
    """Run the migrations on one connection, in one transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text("SET statement_timeout = 0"))
        connection.commit()
    configure(settings, connection)
    with context.begin_transaction():
        context.run_migrations()


def run() -> None:
    """What Alembic calls: with a connection given by on-api (`on-api init`, tests), with its own,
    or offline."""
    settings = load_settings()
    if context.is_offline_mode():
        configure(settings)
        with context.begin_transaction():
            context.run_migrations()
        return
    given = context.config.attributes.get("connection")
    if given is not None:
        migrate(given, settings)
        return
    if settings.database_url is None:
        getLogger("alembic.env").info(settings.home_message)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings)
    try:
        with database.engine.connect() as connection:
            migrate(connection, settings)
    finally:
        database.dispose()


if context.config.config_file_name is not None and "connection" not in context.config.attributes:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
run()
