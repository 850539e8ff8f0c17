"""`on-api fsck`: whether database and node agree."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.context import build_services, command_settings, print_json

if TYPE_CHECKING:
    from on_api.core.services.fsck.findings import Report
    from on_api.core.settings import Settings


def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at pins and counts only; read no blocks.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Check that all that is held is pinned and whole, and nothing of ours is pinned for nobody.

    Safe beside a running on-api. Pins that others made on the node are told and left alone. Exit
    code 1 when something is wrong (after --repair: still wrong).
    """
    from on_api.core.services.fsck.findings import MEANINGS
    from on_api.core.services.fsck.runner import as_document

    report = asyncio.run(_run(command_settings(warns=False), repair=repair, walk=not quick))
    if as_json:
        print_json(as_document(report))
    else:
        for finding in report.findings:
            state = "mended" if finding.mended else "WRONG" if finding.is_trouble else "note"
            typer.echo(f"{state:6}  {finding.kind}  {finding.subject}: {finding.details}")
        for kind, count in report.counts.items():
            typer.echo(f"{count} x {kind}: {MEANINGS[kind]}")
        typer.echo(
            f"{report.contents} contents, {report.pins} pins on the node, {report.blocks} blocks "
            f"({report.bytes / 10**9:,.3f} GB) read: " + ("clean" if report.clean else "NOT clean")
        )
    if not report.clean:
        raise typer.Exit(1)


async def _run(settings: Settings, *, repair: bool, walk: bool) -> Report:

    services = build_services(settings)
    try:
        return await services.fsck.run(repair=repair, walk=walk)
    finally:
        await services.close()
