"""`on-api users`: accounts, managed on the machine that on-api runs on."""

from __future__ import annotations

from typing import Annotated

import typer

from on_api.cli.context import account_scope, print_json, print_table

app = typer.Typer(help="Manage user accounts.", no_args_is_help=True)

Username = Annotated[str, typer.Argument(help="Username of the account.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Password = Annotated[
    str,
    typer.Option(
        prompt=True,
        confirmation_prompt=True,
        hide_input=True,
        envvar="ON_API_NEW_PASSWORD",
        help="Password; you are prompted for it if it is not given. Avoid passing it on the command"
        " line, where other users can see it.",
    ),
]


Quota = Annotated[
    str | None,
    typer.Option("--quota", metavar="SIZE", help="What they may store: 10GiB, 500MB, or none."),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="SIZE", help="What may go out in a month: 1TiB, or none."),
]


@app.command("create")
def create(
    username: Username,
    password: Password,
    admin: Annotated[bool, typer.Option("--admin", help="Create an administrator.")] = False,
    quota: Quota = None,
    budget: Budget = None,
) -> None:
    """Create an account. Limits that are left out default to ON_API_LIMITS__NEW_ACCOUNT_…"""
    from on_api.core.schemas.users import UserCreate
    from on_api.core.services.accounts.audit import COMMAND_LINE

    limits = _limits(quota, budget)
    _check(UserCreate, username=username, password=password)
    with account_scope() as (accounts, session):
        password_hash = accounts.users.hash_password(password)
        user = accounts.users.create(
            session, username, password_hash, COMMAND_LINE, is_admin=admin, limits=limits
        )
    typer.echo(f"Created {user.username} ({user.id})")


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List all accounts, newest first."""
    from on_api.core.pagination import MAX_LIMIT, TimePage
    from on_api.core.services.accounts.users import all_users

    with account_scope() as (_, session):
        _, users = all_users().by_time(session, TimePage(limit=MAX_LIMIT))
        rows: list[tuple[object, ...]] = [
            (
                *(u.username, u.id, u.is_admin, u.active),
                *(u.usage.file_count, u.usage.storage_bytes, u.storage_quota, u.egress_budget),
            )
            for u in users
        ]
    header = ("username", "id", "admin", "active", "files", "bytes", "quota", "budget")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, rows)


@app.command("set")
def set_(
    username: Username,
    quota: Quota = None,
    budget: Budget = None,
    admin: Annotated[
        bool | None, typer.Option("--admin/--no-admin", help="An administrator or not.")
    ] = None,
) -> None:
    """Change what a user may use and do, at once in every process; what is not named stays."""
    from on_api.core.errors import BadRequest

    changes: dict[str, object] = {**_limits(quota, budget)}
    if admin is not None:
        changes["is_admin"] = admin
    if not changes:
        raise BadRequest("Nothing to change: name --quota, --budget, --admin or --no-admin.")
    _change(username, changes)


@app.command("password")
def password(username: Username, password: Password) -> None:
    """Set a user's password and end their login sessions."""
    from on_api.core.schemas.users import UserCreate

    _check(UserCreate, username=username, password=password)
    _change(username, {}, password=password)


@app.command("deactivate")
def deactivate(username: Username) -> None:
    """Disable a user's API keys and end their login sessions; `activate` enables the keys again."""
    _change(username, {"active": False})


@app.command("activate")
def activate(username: Username) -> None:
    """Activate an account again that `deactivate` has disabled."""
    _change(username, {"active": True})


@app.command("delete")
def delete(
    username: Username,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete without asking for confirmation.")
    ] = False,
) -> None:
    """Delete a user and all their files. This can't be undone."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.users import find_user

    if not yes:
        typer.confirm(f"Delete {username} and all their files?", abort=True)
    with account_scope() as (accounts, session):
        accounts.users.delete(session, find_user(session, username).id, COMMAND_LINE)
    typer.echo(
        f"Deleted {username}; the files are removed in the background while on-api is running"
    )


def _limits(quota: str | None, budget: str | None) -> dict[str, int | None]:
    """Return the limits that were given, by their names in the API. Raises `BadRequest`."""
    from on_api.cli.sizes import limit_of

    given = {"storage_quota": quota, "egress_budget": budget}
    return {name: limit_of(text) for name, text in given.items() if text is not None}


def _change(username: str, changes: dict[str, object], *, password: str | None = None) -> None:
    """Change an account as `PATCH /v1/users/{id}` does."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.accounts.users import find_user

    with account_scope() as (accounts, session):
        if password is not None:
            changes = {**changes, "password_hash": accounts.users.hash_password(password)}
        accounts.users.change(session, find_user(session, username).id, changes, COMMAND_LINE)
    typer.echo(f"Updated {username}")


def _check(model: type, **values: object) -> None:
    """Validate values by the API's own rules. Raises `BadRequest`."""
    from pydantic import ValidationError

    from on_api.core.errors import BadRequest
    from on_api.core.web.error_texts import describe

    try:
        model(**values)
    except ValidationError as error:
        raise BadRequest(describe(error.errors())) from None
