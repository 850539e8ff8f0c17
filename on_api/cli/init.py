"""`on-api init`: creates everything needed before the first start. Safe to repeat. `on-api serve`
does it by itself where nothing is there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli import admin_keys
from on_api.cli.context import open_database, prepare_home, show_home
from on_api.core.errors import StartupError
from on_api.server.process import load_settings

if TYPE_CHECKING:
    from on_api.core.models import Database
    from on_api.core.settings import Settings

_SIGNS_OF_USE = ("secret.key", admin_keys.MAIN_FILE, "ipfs")
"""Names in a home that come after its database was made."""


def init(
    username: Annotated[str, typer.Option(help="Username of the first administrator.")] = "admin",
) -> None:
    """Create the home folder, the master secret, the database and the first administrator."""
    from on_api.core.models import migrations

    settings = load_settings()
    show_home(settings)
    prepare_home(settings.home)
    database = open_database(settings)
    try:
        migrations.upgrade(database)
        if not _has_accounts(database):
            _create_first_account(settings, database, username)
        else:
            with database.session_scope(write=False) as session:
                # A kill right after the commit has left the key file under its first name.
                found = admin_keys.find(settings.home, session)
            if found is not None:
                admin_keys.give_name(found)
    finally:
        database.dispose()


def prepare_first_start(settings: Settings, database: Database) -> None:
    """Do what `on-api init` does, if this on-api has never been in use: its database is empty, or
    is migrated and has no account yet.

    A database that is behind is left as it is, for `check_revision`. Raises `StartupError` if the
    database is empty but the home has been in use: then it is probably not the one that is meant.
    """
    from on_api.core.models.revisions import needed_revision, present_revision

    with database.session_scope(write=False) as session:
        present = present_revision(session.connection())
    if present is None:
        used = [name for name in _SIGNS_OF_USE if (settings.home / name).exists()]
        if used:
            raise StartupError(
                f"The database is empty, but {settings.home.absolute()} has been in use (it has "
                f"{used[0]}): set ON_API_DATABASE_URL to the database that belongs to it, or make "
                "a new one with `on-api init`."
            )
        from on_api.core.models import migrations

        typer.echo("on-api: the first start: makes the database and an administrator")
        migrations.upgrade(database)
    if present in {None, needed_revision()} and not _has_accounts(database):
        _create_first_account(settings, database, "admin")


def _create_first_account(settings: Settings, database: Database, username: str) -> None:
    from on_api.core.crypto.secrets import create_secret_file

    if settings.secret_key is None and create_secret_file(settings.home):
        path = settings.home / "secret.key"
        typer.echo(f"on-api: created the master secret {path}: back it up.")
    _create_first_administrator(settings, database, username)


def _create_first_administrator(settings: Settings, database: Database, username: str) -> None:
    from on_api.core.crypto.kdf import Scrypt
    from on_api.core.crypto.passwords import PasswordHasher
    from on_api.core.crypto.secrets import Keyring
    from on_api.core.models.invalidation import Invalidations
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.keys import KeyRequest, KeyService, every_scope
    from on_api.core.services.accounts.users import UserService

    invalidations = Invalidations(database)
    keys = KeyService(Keyring.load(settings), invalidations)
    hasher = PasswordHasher(Scrypt.load(settings), log_n=settings.auth.scrypt_log_n)
    with database.session_scope() as session:
        users = UserService(hasher, keys, invalidations, settings.limits)
        user = users.create(session, username, None, COMMAND_LINE, is_admin=True)
        request = KeyRequest(name="first key", scopes=every_scope(user))
        _, secret = keys.issue(session, user.id, request, COMMAND_LINE)
        # Before the commit: a kill in between leaves a file without an administrator, and never an
        # administrator whose key is lost.
        path = admin_keys.keep(settings.home, secret)
    path = admin_keys.give_name(path)
    typer.echo(
        f"on-api: created the administrator {user.username!r}. "
        f"Its API key, which is also stored in {path}, is:\n\n    {secret}\n"
    )
    if path.name != admin_keys.MAIN_FILE:
        typer.echo(
            f"on-api: {admin_keys.MAIN_FILE} in the home folder holds the key for another"
            " database, and was left unchanged."
        )


def _has_accounts(database: Database) -> bool:
    from sqlalchemy import select

    from on_api.core.models import User

    with database.session_scope(write=False) as session:
        return session.scalar(select(User.id).limit(1)) is not None
