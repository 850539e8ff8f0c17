"""`on-api gateway`: what `/ipfs` must not serve."""

from __future__ import annotations

from typing import Annotated

import typer

from on_api.cli.context import command_scope, print_json, print_table

app = typer.Typer(help="The gateway's deny list.", no_args_is_help=True)

CidArgument = Annotated[str, typer.Argument(help="A CID of any form.")]


@app.command("deny")
def deny(
    cid: CidArgument,
    status: Annotated[int, typer.Option(help="What is answered: 410 or 451.")] = 410,
    reason: Annotated[str | None, typer.Option(help="For you; it is not shown.")] = None,
) -> None:
    """Serve a CID no more, nor any path below it; in every process within a second.

    Matched by its hash, in whatever form it is asked for, where a URL names it: not inside of
    other content that holds it. Files' content and links are not concerned.
    """
    from on_api.core.services import deny_list
    from on_api.core.services.audit import COMMAND_LINE

    with command_scope() as (_, session):
        entry = deny_list.deny(session, cid, status=status, reason=reason, actor=COMMAND_LINE)
        normalised = entry.cid
    typer.echo(f"denied {normalised} ({status})")


@app.command("undeny")
def undeny(cid: CidArgument) -> None:
    """Take a CID off the list."""
    from on_api.core.services import deny_list
    from on_api.core.services.audit import COMMAND_LINE

    with command_scope() as (_, session):
        deny_list.undeny(session, cid, COMMAND_LINE)
    typer.echo(f"{cid} is not denied any more")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """The list, newest first."""
    from on_api.core.services import deny_list

    with command_scope() as (_, session):
        rows: list[tuple[object, ...]] = [
            (entry.cid, entry.status, entry.created_at, entry.reason)
            for entry in deny_list.denied(session)
        ]
    header = ("cid", "status", "created_at", "reason")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, rows)
