"""`on-api db copy`: moves a deployment from one database to another."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.context import open_database, print_json, print_table, show_home
from on_api.core.settings import Settings
from on_api.server.process import end_cleanly_on_signal, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from on_api.core.models.copying import CopiedTable

_FROM_ENVIRONMENT = "env:"
_URL = "a URL, or env:NAME for the URL in the environment variable NAME"
_SHOWN_DIGITS = 16


def copy(
    from_: Annotated[
        str | None,
        typer.Option("--from", help=f"Source: {_URL}. Default: the SQLite database in the home."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help=f"Target: {_URL}. Default: ON_API_DATABASE_URL.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Copy everything into an empty database, and check that all of it has arrived.

    Stop on-api first. The target gets its tables by itself. The copy is one transaction: after an
    interruption the target is empty, and the command can be run again. The source stays as it is.
    Put a URL with a password into an environment variable: other users of the machine can read
    a command's arguments.
    """
    from on_api.core.errors import BadRequest
    from on_api.core.services.upkeep.instance import database_of
    from on_api.core.services.upkeep.moving import refuse_if_served

    end_cleanly_on_signal()
    settings = load_settings()
    show_home(settings)
    source = load_settings(database_url=None) if from_ is None else _settings("--from", from_)
    target = settings if to is None else _settings("--to", to)
    if to is None and settings.database_url is None:
        raise BadRequest(
            "There is no target: set ON_API_DATABASE_URL, or name the target with --to."
        )
    if database_of(source) == database_of(target):
        raise BadRequest(f"Source and target are the same database, {database_of(source)}.")
    if (file := _file(source)) is not None and not file.is_file():
        raise BadRequest(f"There is no database at {file} to copy from: correct --from.")
    refuse_if_served(settings.home, source, target)
    tables = _run(source, target)
    if as_json:
        print_json(
            [{"table": each.name, "rows": each.rows, "sha256": each.checksum} for each in tables]
        )
    else:
        print_table(
            ("table", "rows", "checksum"),
            [(each.name, each.rows, each.checksum[:_SHOWN_DIGITS]) for each in tables],
        )
    typer.echo(
        f"on-api: {database_of(source)} was copied to {database_of(target)}. Set "
        "ON_API_DATABASE_URL to the new database, and start on-api in the same home.",
        err=True,
    )


def _run(source: Settings, target: Settings) -> Sequence[CopiedTable]:
    from on_api.cli.progress import Progress, ProgressLine
    from on_api.core.services.upkeep.moving import move

    line, shown = ProgressLine(), ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal line, shown
        if what != shown:
            # The pace of one table says nothing of the next.
            line, shown = ProgressLine(), what
        line.show(Progress(what, done, total, bytes=None, total_bytes=None))

    with ExitStack() as stack:
        stack.callback(lambda: line.end())
        opened = open_database(source)
        stack.callback(opened.dispose)
        if (file := _file(target)) is not None:
            # For its owner alone, as in the home; SQLite gives its other files the same mode.
            with suppress(OSError):
                os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
        filled = open_database(target)
        stack.callback(filled.dispose)
        return move(opened, filled, show)


def _settings(option: str, value: str) -> Settings:
    """Return the settings with the database of an option's value. Raises `BadRequest`, which names
    the option and no part of the URL."""
    from pydantic import SecretStr
    from sqlalchemy.engine import make_url

    from on_api.core.errors import BadRequest, StartupError

    url = value
    if value.startswith(_FROM_ENVIRONMENT):
        name = value.removeprefix(_FROM_ENVIRONMENT)
        url = os.environ.get(name, "")
        if not url:
            raise BadRequest(f"{option}: there is no environment variable {name!r}.")
    try:
        settings = load_settings(database_url=SecretStr(url))
    except StartupError as error:
        raise BadRequest(f"{option} can't be used. {error.details}") from None
    parsed = make_url(settings.sqlalchemy_url)
    if url == value and (parsed.password or "password" in parsed.query):
        typer.echo(
            f"on-api: warning: other users of this machine can read the password in {option} "
            "while the command runs. Put the URL into an environment variable, and give "
            f"{option} env:NAME.",
            err=True,
        )
    return settings


def _file(settings: Settings) -> Path | None:
    """Return the path of SQLite's file; None for PostgreSQL."""
    from sqlalchemy.engine import make_url

    return Path(make_url(settings.sqlalchemy_url).database or "") if settings.uses_sqlite else None
