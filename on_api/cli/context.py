"""What every command needs: settings with readable mistakes, a transaction, output."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from on_api.cli import collector
from on_api.core.errors import DatabaseUnavailable, StartupError
from on_api.core.settings import Settings, UnknownSettingError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from on_api.core.models import Database
    from on_api.core.services.accounts.container import Accounts
    from on_api.core.services.container import Services


def load_settings(**given: object) -> Settings:
    """Settings from the environment and `.env`, but for those given. Raises `StartupError` naming
    each wrong variable, never its value."""
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by Pydantic
    except UnknownSettingError as error:
        raise StartupError(f"The settings are wrong: {error}.") from None
    except SettingsError as error:
        # Its text names the outermost field only: cors, of ON_API_CORS__ORIGINS.
        [field] = re.findall(r'field "(\w+)"', str(error)) or ["?"]
        raise StartupError(
            f"The settings are wrong. ON_API_{field.upper()}: not valid JSON; a list is written"
            ' ["https://a.example", "https://b.example"].'
        ) from None
    except ValidationError as error:
        mistakes = []
        for mistake in error.errors(include_url=False, include_input=False, include_context=False):
            name = "__".join(str(step) for step in mistake["loc"]).upper()
            words = mistake["msg"].removeprefix("Value error, ")
            mistakes.append(f"ON_API_{name}: {words}" if name else words)
        raise StartupError(f"The settings are wrong. {'; '.join(mistakes)}.") from None


def command_settings(*, warns: bool = True) -> Settings:
    """Settings of a command beside a running on-api: with the addresses of the one in this home.

    With `warns` the person is told of one that uses another database than this command would;
    `build_services` refuses that.
    """
    from on_api.core.services.upkeep.instance import running_instance

    settings = load_settings()
    instance = running_instance(settings.home)
    if instance is None:
        return settings
    if warns and not instance.uses_database_of(settings):
        typer.echo(f"on-api: warning: {instance.told_database()}.", err=True)
    return instance.applied_to(settings)


def prepare_home(home: Path) -> None:
    """Make `ON_API_HOME` (mode 0700). Raises `StartupError` where that can't be."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"Can't write to {home.absolute()} ({error.strerror}): "
            "give yourself access, or set ON_API_HOME to another folder."
        ) from None


def open_database(settings: Settings) -> Database:
    """The database, proved to be reachable. Raises `StartupError` saying which one isn't."""
    from on_api.core.models import Database

    database = Database(settings)
    try:
        with database.session_scope(write=False) as session:
            session.connection()
    except DatabaseUnavailable as error:
        database.dispose()
        if error.details != DatabaseUnavailable.summary:
            url = database.engine.url.render_as_string()
            raise StartupError(f"{error.details} ({url})") from None
        raise StartupError(
            f"Can't reach the database {database.engine.url.render_as_string()}: start it, "
            "or correct ON_API_DATABASE_URL."
        ) from None
    return database


def build_services(settings: Settings, *, is_worker: bool = False) -> Services:
    """Everything, wired up, for a command that does more than look something up.

    A worker takes a node that somebody else runs as a server does, at its first use. Raises
    `StartupError` for a database that is not at this code's revision, or isn't that of the on-api
    which runs in this home: its node would be changed by what another database says.
    """
    from on_api.core.services.container import Services
    from on_api.core.services.upkeep.instance import running_instance

    instance = running_instance(settings.home)
    if instance is not None and not instance.uses_database_of(settings):
        raise StartupError(f"{instance.told_database()}.")
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
    """Services on a database that is at this code's revision, for a command of more than one
    transaction."""
    services = build_services(command_settings(warns=False))
    try:
        yield services
    finally:
        services.hashers.shutdown()
        services.database.dispose()


@contextmanager
def command_scope() -> Iterator[tuple[Services, Session]]:
    """Services and one transaction: the edge of a command that changes the database."""
    with command_services() as services, services.database.session_scope() as session:
        yield services, session


@contextmanager
def account_scope() -> Iterator[tuple[Accounts, Session]]:
    """As `command_scope`, for what needs accounts and keys only: it starts twice as fast."""
    from on_api.core.services.accounts.container import Accounts

    accounts = Accounts.build(command_settings())
    try:
        _check_revision(accounts.database)
        with accounts.database.session_scope() as session:
            yield accounts, session
    finally:
        accounts.database.dispose()


def end_politely_when_told() -> None:
    """SIGTERM ends the command as Ctrl-C does: with what it started stopped.

    SIGINT is named too: a script that starts us in its background (`on-api node run &`) has us
    inherit it ignored, and Python then leaves it so.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def print_json(value: object) -> None:
    """For scripts: JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """For people: columns as wide as they need to be."""
    table = [header, *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def _check_revision(database: Database) -> None:
    from on_api.core.models.revisions import check_revision

    with database.session_scope(write=False) as session:
        check_revision(session.connection())
