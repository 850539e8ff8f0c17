"""`on-api init`: creates everything needed before the first start. Safe to repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli import admin_keys
from on_api.cli.context import open_database, prepare_home
from on_api.server.process import load_settings

if TYPE_CHECKING:
    from on_api.core.models import Database
    from on_api.core.settings import Settings


def init(
    username: Annotated[str, typer.Option(help="Name of the first administrator.")] = "admin",
) -> None:
    """Make the home folder, the master secret, the database and the first administrator."""
    from on_api.core.crypto.secrets import create_secret_file
    from on_api.core.models import migrations

    settings = load_settings()
    prepare_home(settings.home)
    database = open_database(settings)
    try:
        migrations.upgrade(database)
        if not _has_accounts(database):
            if settings.secret_key is None and create_secret_file(settings.home):
                path = settings.home / "secret.key"
                typer.echo(f"on-api: made the master secret {path}: back it up.")
            _create_first_administrator(settings, database, username)
        else:
            with database.session_scope(write=False) as session:
                # A kill right after the commit has left the key file under its first name.
                found = admin_keys.find(settings.home, session)
            if found is not None:
                admin_keys.give_name(found)
    finally:
        database.dispose()


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
        f"on-api: made the administrator {user.username!r}. "
        f"Its key, also in {path}:\n\n    {secret}\n"
    )
    if path.name != admin_keys.MAIN_FILE:
        typer.echo(
            f"on-api: {admin_keys.MAIN_FILE} there has the key of another database, and stays."
        )


def _has_accounts(database: Database) -> bool:
    from sqlalchemy import select

    from on_api.core.models import User

    with database.session_scope(write=False) as session:
        return session.scalar(select(User.id).limit(1)) is not None
