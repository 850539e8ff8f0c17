"""`on-api gateway`: the deny list of `/ipfs`, and refunds for answers that nginx didn't send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from on_api.cli.context import account_scope, command_services, print_json, print_table
from on_api.cli.log_lines import lines_of
from on_api.server.process import end_cleanly_on_signal

app = typer.Typer(help="The gateway: its deny list, its refunds.", no_args_is_help=True)

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
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.gateway import deny_list

    with account_scope() as (_, session):
        entry = deny_list.deny(session, cid, status=status, reason=reason, actor=COMMAND_LINE)
        normalised = entry.cid
    typer.echo(f"denied {normalised} ({status})")


@app.command("undeny")
def undeny(cid: CidArgument) -> None:
    """Take a CID off the list."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.gateway import deny_list

    with account_scope() as (_, session):
        deny_list.undeny(session, cid, COMMAND_LINE)
    typer.echo(f"{cid} is not denied any more")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """The list, newest first."""
    from on_api.core.services.gateway import deny_list

    with account_scope() as (_, session):
        rows: list[tuple[object, ...]] = [
            (entry.cid, entry.status, entry.created_at, entry.reason)
            for entry in deny_list.denied(session)
        ]
    header = ("cid", "status", "created_at", "reason")
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, rows)


@app.command("refund")
def refund(
    log: Annotated[Path, typer.Argument(help="The log `on_api_accel` of deploy/nginx.conf.")],
    follow: Annotated[bool, typer.Option(help="Go on with what is still to be written.")] = False,
) -> None:
    """Refund what nginx was charged for and didn't send, by its log.

    Each answer once, however often a log is read: read it from its beginning at any time.
    """
    from on_api.core.services.traffic.accelerated import read_line

    end_cleanly_on_signal()
    answers = size = 0
    with command_services() as services:
        try:
            for lines in lines_of(log, follow=follow):
                sent = dict(found for line in lines if (found := read_line(line)))
                refunded = services.accelerated.refund(sent)
                answers, size = answers + refunded.answers, size + refunded.bytes
        finally:
            typer.echo(f"{answers} answers settled, {size} bytes refunded")
