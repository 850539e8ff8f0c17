"""`on-api db`: Alembic's commands for the configured database, also where on-api is installed and
there is no `alembic.ini` (plain `alembic` does the same in a checkout); and `copy`, from
`db_copy.py`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli import db_copy
from on_api.cli.context import open_database, prepare_home, show_home
from on_api.server.process import load_settings

if TYPE_CHECKING:
    from on_api.core.models import Database

app = typer.Typer(
    help="Migrate the database, look at its revision, copy it to another one.",
    no_args_is_help=True,
)
app.command("copy")(db_copy.copy)

AsSql = Annotated[
    bool, typer.Option("--sql", help="Print the SQL instead, for whoever runs it by hand.")
]


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="To this revision.")] = "head",
    sql: AsSql = False,
) -> None:
    """Bring the database to the newest revision, or to another later one."""
    from on_api.core.models import migrations

    if sql:
        migrations.print_upgrade(revision)
        return
    with _database(makes_home=True) as database:
        migrations.upgrade(database, revision)


# Else `-1` would be an option that nobody knows.
@app.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    revision: Annotated[str, typer.Argument(help="To this revision; -1: one back. SQL: FROM:TO.")],
    sql: AsSql = False,
    allow_data_loss: Annotated[
        bool, typer.Option("--allow-data-loss", help="Also if rows or values are destroyed by it.")
    ] = False,
) -> None:
    """Take revisions back. What would destroy data is refused, and named. Stop on-api first."""
    from on_api.core.models import migrations

    if sql:
        migrations.print_downgrade(revision, allow_data_loss=allow_data_loss)
        return
    with _database() as database:
        migrations.downgrade(database, revision, allow_data_loss=allow_data_loss)


@app.command()
def current() -> None:
    """Print the database's revision."""
    from on_api.core.models import migrations

    with _database() as database:
        migrations.print_current(database)


@app.command()
def history() -> None:
    """Print all revisions, the newest first."""
    from on_api.core.models import migrations

    migrations.print_history()


@app.command()
def check() -> None:
    """Compare the database with what the code expects. Exit code 1 when they differ."""
    from on_api.core.models import migrations

    with _database() as database:
        migrations.check(database)


@contextmanager
def _database(*, makes_home: bool = False) -> Iterator[Database]:
    settings = load_settings()
    show_home(settings)
    if makes_home and settings.database_url is None:
        prepare_home(settings.home)
    database = open_database(settings)
    # Alembic's own lines ("Running upgrade 0001 -> 0002"), as its command shows them.
    logging.basicConfig(stream=sys.stderr, format="%(levelname)-5.5s [%(name)s] %(message)s")
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    try:
        yield database
    finally:
        database.dispose()
