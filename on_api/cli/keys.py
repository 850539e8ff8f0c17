"""`on-api keys`: API keys, managed on the machine that on-api runs on."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from on_api.cli.context import account_scope, print_json, print_table

app = typer.Typer(help="API keys.", no_args_is_help=True)

KeyOwner = Annotated[str, typer.Option("--user", help="Whose key.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.command("create")
def create(
    user: KeyOwner,
    name: Annotated[str, typer.Option(help="What to call it.")] = "command line",
    scope: Annotated[
        list[str] | None, typer.Option(help="May be repeated; without: all that the user may do.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days it lives.")] = None,
) -> None:
    """Make a key; prints it, this once."""
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
            raise BadRequest(f"{user} is no administrator and can't have the scope admin.")
        request = KeyRequest(
            name=name,
            scopes=wanted,
            expires_at=utc_now() + timedelta(days=days) if days else None,
        )
        _, secret = accounts.keys.issue(session, owner.id, request, COMMAND_LINE)
    typer.echo(secret)


@app.command("list")
def list_(user: KeyOwner, as_json: AsJson = False) -> None:
    """A user's keys, newest first."""
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
def revoke(user: KeyOwner, key_id: Annotated[uuid.UUID, typer.Argument(help="Its id.")]) -> None:
    """End a key, in every process within a second."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.users import find_user

    with account_scope() as (accounts, session):
        accounts.keys.revoke(session, find_user(session, user).id, key_id, COMMAND_LINE)
    typer.echo(f"revoked {key_id}")


@app.command("rotate-master")
def rotate_master(
    as_json: AsJson = False,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost", help="The secret in use is lost for good: use the one that is here."
        ),
    ] = False,
) -> None:
    """Replace the master secret; safe beside a running on-api, and to be repeated.

    With ON_API_SECRET_KEY: first set the new one there and the old one in
    ON_API_PREVIOUS_SECRET_KEYS for every process, and restart them (until this is called they go on
    with the old one); then call this. Without, it makes the new secret itself. Repeat it until no
    key needs the old one.
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
    typer.echo(f"Sealed {done.sealed_anew} rows under the present secret.")
    if done.keys_left:
        typer.echo(
            f"{done.keys_left} keys were not used since: the old secret is kept for them. "
            "They need it no more after their next use, or when they end."
        )
    if done.waiting_for:
        typer.echo(
            f"{', '.join(done.waiting_for)} have not seen the new secret in use: the old one is "
            "kept for them. Call this again."
        )
    if done.secrets_left == 0:
        if settings.secret_key is not None and begun:
            typer.echo("Nothing needs the old secrets: empty ON_API_PREVIOUS_SECRET_KEYS.")
        else:
            typer.echo("Nothing needs the old secret: it is gone.")
    if done.lost:
        typer.echo(f"{done.lost} rows belong to a master secret that is not here.", err=True)
        raise typer.Exit(1)
