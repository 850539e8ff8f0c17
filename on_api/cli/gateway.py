"""`on-api gateway`: the deny list of `/ipfs`, and refunds for answers that nginx didn't send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from on_api.cli.context import account_scope, command_services, print_json, print_table
from on_api.cli.log_lines import lines_of
from on_api.server.process import end_cleanly_on_signal

app = typer.Typer(help="Manage the gateway: its deny list and its refunds.", no_args_is_help=True)

CidArgument = Annotated[str, typer.Argument(help="CID in any version and encoding.")]


@app.command("deny")
def deny(
    cid: CidArgument,
    status: Annotated[
        int,
        typer.Option(
            help="Status code of the response: 410 (Gone) or 451 (Unavailable For Legal Reasons)."
        ),
    ] = 410,
    reason: Annotated[
        str | None, typer.Option(help="Your note on the reason; it is never shown to clients.")
    ] = None,
) -> None:
    """Stop serving a CID and every path below it, in all processes within a second.

    The CID is matched by its hash, in any encoding, wherever a URL names it; the same blocks inside
    other content stay available. Files and share links are not affected.
    """
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.gateway import deny_list

    with account_scope() as (_, session):
        entry = deny_list.deny(session, cid, status=status, reason=reason, actor=COMMAND_LINE)
        normalised = entry.cid
    typer.echo(f"Denied {normalised} ({status})")


@app.command("undeny")
def undeny(cid: CidArgument) -> None:
    """Remove a CID from the deny list."""
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.gateway import deny_list

    with account_scope() as (_, session):
        deny_list.undeny(session, cid, COMMAND_LINE)
    typer.echo(f"{cid} is no longer denied")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the denied CIDs, newest first."""
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
    log: Annotated[
        Path, typer.Argument(help="Log file in the format `on_api_accel` of deploy/nginx.conf.")
    ],
    follow: Annotated[bool, typer.Option(help="Keep reading lines as nginx writes them.")] = False,
) -> None:
    """Refund bytes that nginx was charged for but did not send, according to its log.

    Each response is settled once, however often a log is read: it is always safe to read a log from
    its beginning.
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
            typer.echo(f"{answers} responses settled, {size} bytes refunded")
