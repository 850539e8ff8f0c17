"""`on-api users`: accounts, managed on the machine that on-api runs on."""

from __future__ import annotations

from typing import Annotated

import typer

from on_api.cli.context import account_scope, print_json, print_table

app = typer.Typer(help="Accounts.", no_args_is_help=True)

Username = Annotated[str, typer.Argument(help="The user's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
Password = Annotated[
    str,
    typer.Option(
        prompt=True,
        confirmation_prompt=True,
        hide_input=True,
        envvar="ON_API_NEW_PASSWORD",
        help="Asked for when not given; never put it on a command line that others can see.",
    ),
]


@app.command("create")
def create(
    username: Username,
    password: Password,
    admin: Annotated[bool, typer.Option("--admin", help="Make an administrator.")] = False,
) -> None:
    """Make an account."""
    from on_api.core.schemas.users import UserCreate
    from on_api.core.services.accounts.audit import COMMAND_LINE

    _check(UserCreate, username=username, password=password)
    with account_scope() as (accounts, session):
        user = accounts.users.create(
            session, username, accounts.users.hash_password(password), COMMAND_LINE, is_admin=admin
        )
    typer.echo(f"made {user.username} ({user.id})")


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All accounts, newest first."""
    from on_api.core.pagination import MAX_LIMIT, TimePage
    from on_api.core.services.accounts.users import all_users

    with account_scope() as (_, session):
        _, users = all_users().by_time(session, TimePage(limit=MAX_LIMIT))
        rows: list[tuple[object, ...]] = [
            (u.username, u.id, u.is_admin, u.active, u.usage.file_count, u.usage.storage_bytes)
            for u in users
        ]
    header = ("username", "id", "admin", "active", "files", "bytes")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, rows)


@app.command("password")
def password(username: Username, password: Password) -> None:
    """Set a user's password; ends their logins."""
    from on_api.core.schemas.users import UserCreate

    _check(UserCreate, username=username, password=password)
    _change(username, password=password)


@app.command("deactivate")
def deactivate(username: Username) -> None:
    """Stop a user's keys and logins; `activate` lets the keys work again."""
    _change(username, active=False)


@app.command("activate")
def activate(username: Username) -> None:
    """Undo `deactivate`."""
    _change(username, active=True)


@app.command("delete")
def delete(
    username: Username,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete a user and all their files. This can't be undone."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.users import find_user

    if not yes:
        typer.confirm(f"Delete {username} and all their files?", abort=True)
    with account_scope() as (accounts, session):
        accounts.users.delete(session, find_user(session, username).id, COMMAND_LINE)
    typer.echo(f"deleted {username}; the files are removed while on-api serves")


def _change(username: str, *, password: str | None = None, active: bool | None = None) -> None:
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.users import find_user

    with account_scope() as (accounts, session):
        changes: dict[str, object] = {}
        if password is not None:
            changes["password_hash"] = accounts.users.hash_password(password)
        if active is not None:
            changes["active"] = active
        accounts.users.change(session, find_user(session, username).id, changes, COMMAND_LINE)
    typer.echo(f"changed {username}")


def _check(model: type, **values: object) -> None:
    """Validate values by the API's own rules. Raises `BadRequest`."""
    from pydantic import ValidationError

    from on_api.core.errors import BadRequest
    from on_api.core.web.error_texts import describe

    try:
        model(**values)
    except ValidationError as error:
        raise BadRequest(describe(error.errors())) from None
