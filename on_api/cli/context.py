"""Common needs of commands: settings with readable errors, services, a transaction, output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from on_api.core.errors import DatabaseUnavailable, StartupError
from on_api.core.installation import LOCAL_HOME
from on_api.core.settings import Settings
from on_api.server import collector
from on_api.server.process import load_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from on_api.core.models import Database
    from on_api.core.services.accounts.container import Accounts
    from on_api.core.services.container import Services


def command_settings(*, warns: bool = True) -> Settings:
    """Return the settings of a command; if on-api runs in this home, with its addresses.

    A home that is neither named nor in this folder is told, since nobody sees it.

    With `warns` a warning is printed if that on-api uses another database than this command would;
    `build_services` refuses that.
    """
    from on_api.core.services.upkeep.instance import running_instance

    settings = load_settings()
    if "home" not in settings.model_fields_set and settings.home != LOCAL_HOME:
        show_home(settings)
    instance = running_instance(settings.home)
    if instance is None:
        return settings
    if warns and not instance.uses_database_of(settings):
        typer.echo(f"on-api: warning: {instance.other_database_message()}.", err=True)
    return instance.applied_to(settings)


def show_home(settings: Settings) -> None:
    """Print to standard error which home a command uses, and why."""
    typer.echo(f"on-api: {settings.home_message}", err=True)


def prepare_home(home: Path, *, restoring: bool = False) -> None:
    """Create `ON_API_HOME` (mode 0700). Raises `StartupError` if it can't be written, or a restore
    into it has not come to its end (unless this is that restore)."""
    from on_api.core.services.upkeep.backup.restore_state import require_no_restore

    if not restoring:
        require_no_restore(home)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"Can't write to {home.absolute()} ({error.strerror}): make it writable for this"
            " user, or set ON_API_HOME to another folder."
        ) from None


def open_database(settings: Settings) -> Database:
    """Open the database, and check that it can be reached. Raises `StartupError`, which names
    it."""
    from on_api.core.models import Database
    from on_api.core.services.upkeep.instance import database_of

    database = Database(settings)
    try:
        with database.session_scope(write=False) as session:
            session.connection()
    except DatabaseUnavailable as error:
        database.dispose()
        shown = database_of(settings)
        if error.details != DatabaseUnavailable.summary:
            raise StartupError(f"{error.details} ({shown})") from None
        raise StartupError(
            f"Can't reach the database {shown}: start it, or correct ON_API_DATABASE_URL."
        ) from None
    return database


def build_services(settings: Settings, *, is_worker: bool = False) -> Services:
    """Build all services, for commands that do more than look something up.

    A worker accepts an external node at its first use, as a server does. Raises `StartupError` if
    the database is not at this code's revision, or is not that of the on-api which runs in this
    home: another database would then decide about its node.
    """
    from on_api.core.services.container import Services
    from on_api.core.services.upkeep.instance import running_instance

    instance = running_instance(settings.home)
    if instance is not None and not instance.uses_database_of(settings):
        raise StartupError(f"{instance.other_database_message()}.")
    services = Services.build(settings, records_node=is_worker)
    try:
        _check_revision(services.database)
    except BaseException:
        services.hashers.shutdown()
        services.database.dispose()
        raise
    collector.begin()
    return services


@contextmanager
def command_services() -> Iterator[Services]:
    """Open services on a database that is at this code's revision, for commands with several
    transactions."""
    services = build_services(command_settings(warns=False))
    try:
        yield services
    finally:
        services.hashers.shutdown()
        services.database.dispose()


@contextmanager
def command_scope() -> Iterator[tuple[Services, Session]]:
    """Open services and one transaction, for commands that change the database."""
    with command_services() as services, services.database.session_scope() as session:
        yield services, session


@contextmanager
def account_scope() -> Iterator[tuple[Accounts, Session]]:
    """Open accounts and one transaction, for commands that need accounts and keys only: it starts
    twice as fast as `command_scope`."""
    from on_api.core.services.accounts.container import Accounts

    accounts = Accounts.build(command_settings())
    try:
        _check_revision(accounts.database)
        with accounts.database.session_scope() as session:
            yield accounts, session
    finally:
        accounts.database.dispose()


def print_json(value: object) -> None:
    """Print JSON to standard output, for scripts."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print columns as wide as they need to be, for people."""
    table = [header, *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def _check_revision(database: Database) -> None:
    from on_api.core.models.revisions import check_revision

    with database.session_scope(write=False) as session:
        check_revision(session.connection())
