"""`on-api keys`: API keys, managed on the machine that on-api runs on."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from on_api.cli.context import account_scope, print_json, print_table

app = typer.Typer(help="Manage API keys.", no_args_is_help=True)

KeyOwner = Annotated[str, typer.Option("--user", help="User who owns the key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command("create")
def create(
    user: KeyOwner,
    name: Annotated[str, typer.Option(help="Name of the key.")] = "command line",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Scope of the key; may be repeated. By default, the key has every scope that its"
            " user may have."
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until the key expires.")
    ] = None,
) -> None:
    """Create an API key and print it. It can't be shown again."""
    from on_api.core.errors import BadRequest
    from on_api.core.models.database import utc_now
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.keys import KeyRequest, every_scope, parse_scopes
    from on_api.core.services.accounts.users import find_user

    with account_scope() as (accounts, session):
        owner = find_user(session, user)
        allowed = every_scope(owner)
        wanted = parse_scopes(scope) if scope else allowed
        if wanted - allowed:
            raise BadRequest(f"{user} is not an administrator and can't have the scope admin.")
        request = KeyRequest(
            name=name,
            scopes=wanted,
            expires_at=utc_now() + timedelta(days=days) if days else None,
        )
        _, secret = accounts.keys.issue(session, owner.id, request, COMMAND_LINE)
    typer.echo(secret)


@app.command("list")
def list_(user: KeyOwner, as_json: AsJson = False) -> None:
    """List a user's API keys, newest first."""
    from on_api.core.pagination import MAX_LIMIT, TimePage
    from on_api.core.services.accounts.keys import keys_of
    from on_api.core.services.accounts.users import find_user

    with account_scope() as (_, session):
        listing = keys_of(find_user(session, user).id)
        _, keys = listing.by_time(session, TimePage(limit=MAX_LIMIT))
        rows: list[tuple[object, ...]] = [
            (k.id, k.prefix, k.name, " ".join(k.scopes), k.expires_at, k.last_used_at) for k in keys
        ]
    header = ("id", "prefix", "name", "scopes", "expires_at", "last_used_at")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, rows)


@app.command("revoke")
def revoke(
    user: KeyOwner, key_id: Annotated[uuid.UUID, typer.Argument(help="ID of the key.")]
) -> None:
    """Revoke a key, in all processes within a second."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.users import find_user

    with account_scope() as (accounts, session):
        accounts.keys.revoke(session, find_user(session, user).id, key_id, COMMAND_LINE)
    typer.echo(f"Revoked {key_id}")


@app.command("rotate-master")
def rotate_master(
    as_json: AsJson = False,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="Continue with the secret that is here: the one in use is permanently lost.",
        ),
    ] = False,
) -> None:
    """Replace the master secret. It is safe to run this while on-api is running, and to run it
    again.

    If ON_API_SECRET_KEY is set: first set the new secret there and the old one in
    ON_API_PREVIOUS_SECRET_KEYS for every process, and restart them (they keep using the old secret
    until this command runs); then run this command. Otherwise, the command creates the new secret
    itself. Repeat it until no key needs the old secret.
    """
    from on_api.core.crypto.secrets import Keyring
    from on_api.core.services.accounts.audit import COMMAND_LINE, record
    from on_api.core.services.accounts.rotation import begin_rotation, rotate_rows

    with account_scope() as (accounts, session):
        settings = accounts.settings
        begun = len(Keyring.load(settings).versions) > 1
        keyring = begin_rotation(session, settings, lost=lost)
        record(session, COMMAND_LINE, "secret.rotate", "secret")
        accounts.invalidations.announce(session)
    done = rotate_rows(
        accounts.database,
        keyring,
        settings,
        accounts.invalidations,
        lambda t: typer.echo(t, err=True),
    )
    accounts.database.dispose()
    if as_json:
        print_json(asdict(done))
        return
    typer.echo(f"Encrypted {done.sealed_anew} rows with the new master secret.")
    if done.keys_left:
        typer.echo(
            f"{done.keys_left} keys have not been used since the rotation began: the old"
            " secret is kept for them. A key no longer needs it once it has been used again or"
            " has expired."
        )
    if done.waiting_for:
        typer.echo(
            f"The old secret is kept because {', '.join(done.waiting_for)} may still be using"
            " it. Run this command again."
        )
    if done.secrets_left == 0:
        if settings.secret_key is not None and begun:
            typer.echo(
                "The old secrets are no longer needed: remove them from"
                " ON_API_PREVIOUS_SECRET_KEYS."
            )
        else:
            typer.echo("The old secret is no longer needed and was deleted.")
    if done.lost:
        typer.echo(
            f"{done.lost} rows were encrypted with a master secret that is not available here.",
            err=True,
        )
        raise typer.Exit(1)
